#include "services/gpu-worker/experts/predictive_policy.h"

namespace hearth::worker {
namespace {

// A prediction says less of an expert than a use: this much of one.
constexpr double kPredictedUse = 0.25;

}  // namespace

void PredictivePolicy::OnPrediction(CacheState* state, int layer, std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    const int32_t key = state->shape.Key(layer, id);
    state->heat.Add(key, kPredictedUse);
    candidates_.Add(key);
  }
}

}  // namespace hearth::worker
