// "predictive": as "lru", and what the next layer's router would choose on this layer's hidden
// state counts as a part of a use and may be admitted: where the table switches between steps only,
// the guess is about the next step, and a near miss of the router is likelier to be used than most.
#pragma once

#include "services/gpu-worker/experts/lru_policy.h"

namespace hearth::worker {

class PredictivePolicy final : public LruPolicy {
 public:
  using LruPolicy::LruPolicy;
  std::string_view name() const override { return "predictive"; }
  void OnPrediction(CacheState* state, int layer, std::span<const int32_t> ids) override;
};

}  // namespace hearth::worker
