#include "services/gpu-worker/experts/lru_policy.h"

namespace hearth::worker {

void LruPolicy::OnStep(CacheState* /*state*/, std::span<const ExpertUse> uses,
                       std::span<const int32_t> missed) {
  review_.OnStep(uses);
  for (const int32_t key : missed) candidates_.Add(key);
}

void LruPolicy::Choose(CacheState* state, int at_most, std::vector<Choice>* choices) {
  const auto margin = static_cast<float>(review_.margin() * state->heat.unit());
  choice_.Choose(state, candidates_.keys(), {state->heat.raws(), state->heat.epoch()}, margin,
                 at_most, choices);
  candidates_.Clear();
  for (const Choice& choice : *choices) {
    const int32_t victim = state->key_of[static_cast<size_t>(choice.slot)];
    if (victim >= 0) review_.OnAdmission(choice.key, victim);
  }
}

}  // namespace hearth::worker
