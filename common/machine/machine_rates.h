// How fast this machine moves bytes, as `hearth doctor` measured it and kept it in a file; stated
// defaults for what was not measured. Used to plan copies of experts.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/json.h"

namespace hearth {

// Of a way from registered memory to the device. Bytes a second; zero: not measured.
struct LinkRates {
  double alone = 0;
  double loaded = 0;  // while the CPU's threads read memory, as they do when they compute experts
  double ram_meanwhile = 0;  // what those threads read then
};

// What only a build with CUDA measures. Zero: not measured.
struct GpuRates {
  LinkRates copy = {};                 // copied in pieces of an expert
  LinkRates zero_copy = {};            // read where it lies by a kernel
  double memory_bytes_per_second = 0;  // the device's own, read by a kernel
  double handshake_seconds = 0;        // kernel, CPU thread, kernel
};
json::object ToJson(const GpuRates& rates);

// Bytes a second; the defaults are an ordinary desktop's.
struct MachineRates {
  double ram = 60e9;        // read by all threads: two channels of DDR5
  double pcie = 25e9;       // copies: PCIe 4, 16 lanes. While the CPU reads, if that was measured
  double zero_copy = 25e9;  // kernels that read registered memory, likewise; else as copies
  double vram = 700e9;      // a consumer GPU
  double handshake_seconds = 5e-6;
  std::string source = "defaults";  // where they are from, for the log: a path, or this
};

// $XDG_CACHE_HOME/hearth/machine.json, else ~/.cache/hearth/machine.json; nothing if neither is
// set to an absolute path.
std::optional<std::filesystem::path> MachineFile();

// Rates of a file of `hearth doctor`: of the memory the fastest reading, of the GPU what there is.
// What is absent or not a positive number keeps its default. NotFound without a file;
// InvalidArgument where it is no JSON object.
absl::StatusOr<MachineRates> ReadMachineRates(const std::filesystem::path& file);

// Of MachineFile(), or the defaults: never fails.
MachineRates ThisMachinesRates();

// Takes over from `file`, a former finding, what `findings` measured nothing of: "gpu_speed", if a
// build without CUDA or a GPU that was busy could not measure it this time.
void KeepWhatWasMeasured(const std::filesystem::path& file, json::object* findings);

}  // namespace hearth
