// What a benchmark found, as a table for people and as one JSON object.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/json.h"
#include "common/machine/statistics.h"
#include "services/gpu-worker/benchmark/runner.h"

namespace hearth::worker {

struct MemoryUse {
  std::string tier;       // "RAM"
  std::string component;  // "experts", "dense weights", "KV pages"
  uint64_t bytes = 0;
};

struct BenchmarkReport {
  std::string model;
  int n_threads = 0;
  int repetitions = 0;
  int64_t warm_up_tokens = 0;   // of decode tests
  std::string kernels;          // "float32 reference"
  std::string routing;          // what MakeRouting described
  std::string mtp = "off";      // "1 guess a step, 80 % of them right"
  bool fills_contexts = false;  // some test has a context
  Spread read_bandwidth;        // bytes a second with as many threads, measured by the same process
  double load_seconds = 0;
  std::vector<MemoryUse> memory;
  std::vector<BenchmarkResult> results;
};

json::object ToJson(const BenchmarkReport& report);  // with machine and build
std::string ToText(const BenchmarkReport& report);

}  // namespace hearth::worker
