// "prompt": as "lru", and what a prompt used is admitted before its first token: an expert that a
// share of the prompt's tokens used is as hot as if as many decode steps had used it so often.
#pragma once

#include "services/gpu-worker/experts/lru_policy.h"

namespace hearth::worker {

class PromptPolicy final : public LruPolicy {
 public:
  using LruPolicy::LruPolicy;
  std::string_view name() const override { return "prompt"; }
  void OnPrompt(CacheState* state, std::span<const ExpertUse> uses, int n_tokens) override;
};

}  // namespace hearth::worker
