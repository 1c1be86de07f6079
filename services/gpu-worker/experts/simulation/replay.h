// A trace as the expert cache sees it: step by step, every expert once with its rows.
#pragma once

#include <span>
#include <vector>

#include "services/gpu-worker/experts/simulation/trace.h"

namespace hearth::worker {

struct ReplayStep {
  bool is_prompt = false;
  int n_tokens = 0;
  // Decode steps: tokens that their youngest sequence has decoded before.
  int age = 0;
  std::vector<ExpertUse> uses;        // by layer
  std::vector<ExpertUse> early_uses;  // what was predicted, where the trace has it
};

// The steps in their order; one with tokens of both kinds comes as two, prompts first.
std::vector<ReplayStep> Replay(const RoutingTrace& trace);

}  // namespace hearth::worker
