#include "services/gpu-worker/experts/prompt_policy.h"

namespace hearth::worker {

void PromptPolicy::OnPrompt(CacheState* state, std::span<const ExpertUse> uses, int n_tokens) {
  for (const ExpertUse& use : uses) {
    const int32_t key = state->shape.Key(use.layer, use.expert);
    // Raised, not added: a prompt comes in chunks, and each says the same of an expert's rate.
    state->heat.RaiseTo(key, state->heat.HeatOfRate(use.rows, n_tokens));
    candidates_.Add(key);
  }
}

}  // namespace hearth::worker
