// Memory nodes and processor places of this machine. On a machine with one node nothing here does
// anything.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>
#include <vector>

namespace hearth {

// "0-3,8" as numbers, rising; what can't be read is left out.
std::vector<int> ParseNumberList(std::string_view text);

// The nodes on which this process may have memory.
std::vector<int> MemoryNodes(const std::filesystem::path& proc_status = "/proc/self/status");

// Asks that pages of this mapping which are not there yet come from all nodes in turn, so that
// threads of every node read it at the same, full speed. Of a shared mapping it says so for the
// file. Page aligned.
void InterleaveOverNodes(void* data, size_t bytes);

// Where a logical processor sits.
struct ProcessorPlace {
  int cpu = 0;
  int package = 0;
  int core = 0;  // the lowest processor number of the physical core
  int node = 0;
  bool operator==(const ProcessorPlace&) const = default;
};

// Processors in this process's affinity mask, rising.
std::vector<int> AllowedCores();

// The places of `cpus`; those that the system doesn't describe are taken for cores of their own.
std::vector<ProcessorPlace> ReadPlaces(
    const std::vector<int>& cpus, const std::filesystem::path& sys = "/sys/devices/system/cpu");

// The order in which threads should take processors: one of each physical core before any second
// one, and each round spread over the nodes in turn.
std::vector<int> PinningOrder(std::vector<ProcessorPlace> places);

}  // namespace hearth
