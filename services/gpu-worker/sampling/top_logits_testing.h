// What a device makes of a row of logits, for tests of those who sample from it.
#pragma once

#include <cmath>
#include <span>

#include "services/gpu-worker/sampling/logits.h"
#include "services/gpu-worker/sampling/top_logits.h"

namespace hearth::worker::testing {

// The `n` largest, with the sum of weights off by `error`. As a device's: a row with NaN or
// +infinity, or without a finite value, has kBroken.
inline TopLogitsRow TopOf(std::span<const float> logits, float temperature, double error = 0,
                          int n = kTopLogits) {
  TopLogitsRow top{};
  top.temperature = temperature == 0 ? 1 : temperature;
  if (!CheckLogits(logits).ok()) {
    top.flags = TopLogitsRow::kBroken;
    return top;
  }
  const auto ranked = TopRanked(logits, n);
  top.n = static_cast<int32_t>(ranked.size());
  for (size_t i = 0; i < ranked.size(); ++i) {
    top.ids[i] = ranked[i].id, top.logits[i] = ranked[i].logit;
  }
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp((double{logit} - ranked[0].logit) / top.temperature);
  }
  top.weight_sum = static_cast<float>(sum * (1 + error));
  return top;
}

}  // namespace hearth::worker::testing
