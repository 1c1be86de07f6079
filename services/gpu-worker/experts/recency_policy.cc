#include "services/gpu-worker/experts/recency_policy.h"

namespace hearth::worker {

void RecencyPolicy::OnStep(CacheState* state, std::span<const ExpertUse> uses,
                           std::span<const int32_t> missed) {
  ++step_;
  for (const ExpertUse& use : uses) {
    last_use_[static_cast<size_t>(state->shape.Key(use.layer, use.expert))] = step_;
  }
  for (const int32_t key : missed) candidates_.Add(key);
}

void RecencyPolicy::Choose(CacheState* state, int at_most, std::vector<Choice>* choices) {
  choice_.Choose(state, candidates_.keys(), {last_use_, 0}, 0, at_most, choices);
  candidates_.Clear();
}

}  // namespace hearth::worker
