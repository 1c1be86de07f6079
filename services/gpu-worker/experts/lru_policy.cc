#include "services/gpu-worker/experts/lru_policy.h"

namespace hearth::worker {

void LruPolicy::OnStep(CacheState* /*state*/, std::span<const ExpertUse> /*uses*/,
                       std::span<const int32_t> missed) {
  for (const int32_t key : missed) candidates_.Add(key);
}

void LruPolicy::Choose(CacheState* state, int at_most, std::vector<Choice>* choices) {
  const auto margin = static_cast<float>(admission_cost_ * state->heat.unit());
  choice_.Choose(state, candidates_.keys(), {state->heat.raws(), state->heat.epoch()}, margin,
                 at_most, choices);
  candidates_.Clear();
}

}  // namespace hearth::worker
