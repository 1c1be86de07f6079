// What `hearth doctor` found: facts, filled in by examine.h; what they mean, judged and printed
// here. No system call in this file, so that every machine can be made up in a test.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/json.h"
#include "common/machine/huge_page_state.h"
#include "common/machine/machine_info.h"
#include "common/machine/machine_rates.h"
#include "common/machine/machine_speed.h"

namespace hearth::cli {

struct SegmentCheck {
  bool is_huge = false;  // a segment that `hearth serve` makes lies in huge pages
  std::string reason;    // why not
};

struct PortCheck {
  std::string host;
  int port = 0;
  std::string problem;  // empty: it can be listened on
};

struct ModelCheck {
  std::string path;
  std::string problem;  // what refuses the folder; the rest is 0 then
  int n_layers = 0;
  int n_experts = 0;
  uint64_t expert_bytes = 0;  // in memory
  uint64_t dense_bytes = 0;
  uint64_t kv_bytes = 0;  // as full as they may get
  uint64_t need() const { return expert_bytes + dense_bytes + kv_bytes; }
};

struct Diagnosis {
  MachineInfo machine;
  std::vector<std::string> kernels;  // best first; empty: only the float32 backend runs
  int physical_cores = 0;
  int memory_nodes = 1;
  uint64_t available_bytes = 0;         // memory
  std::optional<uint64_t> limit_bytes;  // what the tightest control group leaves
  std::optional<MachineSpeed> speed;    // nothing: not measured
  HugePageState huge_pages;
  SegmentCheck segment;
  bool is_root = false;
  uint64_t shm_bytes = 0, shm_free_bytes = 0;  // /dev/shm
  uint64_t descriptors = 0;                    // that a process may raise its limit to
  PortCheck port;
  bool has_cuda = false;  // built with it
  std::vector<std::string> gpus;
  std::optional<GpuRates> gpu_speed;  // nothing: not measured
  std::string gpu_problem;            // why not, in one line; empty if it was not to be measured
  std::optional<ModelCheck> model;

  // Of memory that Hearth could take now.
  uint64_t room() const;
};

// Why Hearth cannot serve here; empty if it can. Each says what to change.
std::vector<std::string> Problems(const Diagnosis& diagnosis);
// What would make it faster, with the operator's command.
std::vector<std::string> Advice(const Diagnosis& diagnosis);

std::string ToText(const Diagnosis& diagnosis);
json::object ToJson(const Diagnosis& diagnosis);

}  // namespace hearth::cli
