#include "common/base/numa.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <tuple>

namespace hearth {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxNodes = 1024;  // as the kernel is built at most
constexpr int kMaxListed = 1 << 16;

std::optional<int> ParseNumber(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::string FirstLine(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

// A processor's folder has a link "nodeN" where there are several.
int NodeOf(const fs::path& processor) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(processor, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("node")) continue;
    if (const auto node = ParseNumber(std::string_view(name).substr(4))) return *node;
  }
  return 0;
}

}  // namespace

std::vector<int> ParseNumberList(std::string_view text) {
  std::vector<int> numbers;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    std::string_view part = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    while (!part.empty() && std::isspace(static_cast<unsigned char>(part.back()))) {
      part.remove_suffix(1);
    }
    while (!part.empty() && std::isspace(static_cast<unsigned char>(part.front()))) {
      part.remove_prefix(1);
    }
    const size_t dash = std::min(part.find('-'), part.size());
    const auto first = ParseNumber(part.substr(0, dash));
    const auto last = dash < part.size() ? ParseNumber(part.substr(dash + 1)) : first;
    if (!first || !last) continue;
    for (int i = *first; i <= std::min(*last, kMaxListed); ++i) numbers.push_back(i);
  }
  std::ranges::sort(numbers);
  return numbers;
}

std::vector<int> MemoryNodes(const fs::path& proc_status) {
  constexpr std::string_view kField = "Mems_allowed_list:";
  std::ifstream in(proc_status);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(kField)) continue;
    std::vector<int> nodes = ParseNumberList(std::string_view(line).substr(kField.size()));
    if (!nodes.empty()) return nodes;
  }
  return {0};
}

void InterleaveOverNodes(void* data, size_t bytes) {
  static const std::vector<int> nodes = MemoryNodes();
  if (nodes.size() < 2 || bytes == 0) return;
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  std::array<unsigned long, kMaxNodes / kBits> mask{};
  for (const int node : nodes) {
    if (node >= kMaxNodes) continue;
    mask[static_cast<size_t>(node) / kBits] |= 1UL << (static_cast<size_t>(node) % kBits);
  }
  // The system call itself: libnuma would be one more library for this line. Refused (a sandbox, no
  // NUMA in the kernel): pages come from the node that touches them.
  ::syscall(SYS_mbind, data, bytes, MPOL_INTERLEAVE, mask.data(), kMaxNodes + 1, 0);
}

std::vector<int> AllowedCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

std::vector<ProcessorPlace> ReadPlaces(const std::vector<int>& cpus, const fs::path& sys) {
  std::vector<ProcessorPlace> places;
  for (const int cpu : cpus) {
    const fs::path processor = sys / ("cpu" + std::to_string(cpu));
    const auto package = ParseNumber(FirstLine(processor / "topology/physical_package_id"));
    std::vector<int> siblings =
        ParseNumberList(FirstLine(processor / "topology/thread_siblings_list"));
    if (siblings.empty()) siblings = {cpu};
    places.push_back({.cpu = cpu,
                      .package = package.value_or(0),
                      .core = siblings.front(),
                      .node = NodeOf(processor)});
  }
  return places;
}

std::vector<int> PinningOrder(std::vector<ProcessorPlace> places) {
  std::ranges::sort(places, {}, &ProcessorPlace::cpu);
  // Sorted by: how many of the same core come before it; how many of the same round and node come
  // before it, which takes the nodes in turn; node.
  std::map<int, int> seen_of_core;
  std::map<std::pair<int, int>, int> seen_of_round;
  std::vector<std::tuple<int, int, int, int>> keys;
  for (const ProcessorPlace& place : places) {
    const int round = seen_of_core[place.core]++;
    const int turn = seen_of_round[{round, place.node}]++;
    keys.emplace_back(round, turn, place.node, place.cpu);
  }
  std::ranges::sort(keys);
  std::vector<int> order;
  order.reserve(keys.size());
  for (const auto& key : keys) order.push_back(std::get<3>(key));
  return order;
}

}  // namespace hearth
