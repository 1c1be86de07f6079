// What `hearth cache simulate` prints.
#pragma once

#include <span>
#include <string>

#include "common/base/json.h"
#include "services/gpu-worker/experts/simulation/simulator.h"

namespace hearth::worker {

struct SimulationReport {
  std::string source;  // where the trace is from
  CacheShape shape;
  int top_k = 0;
  SimulationOptions options;                // what all results share
  std::optional<double> early_recall = {};  // EarlyRecall
  std::vector<SimulationResult> results;
};

std::string ToText(const SimulationReport& report);
json::object ToJson(const SimulationReport& report);

}  // namespace hearth::worker
