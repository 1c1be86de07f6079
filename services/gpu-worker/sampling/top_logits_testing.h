// What a device makes of a row of logits, and what requests may ask of it: for tests of those who
// sample from it.
#pragma once

#include <cmath>
#include <initializer_list>
#include <random>
#include <span>

#include "services/gpu-worker/sampling/logits.h"
#include "services/gpu-worker/sampling/params.h"
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

// Without logprobs. Needs three tokens at least.
inline SamplingParams RandomParams(std::mt19937& random, uint32_t most_top_k) {
  const auto one_in = [&](uint32_t n) { return random() % n == 0; };
  const auto of = [&](std::initializer_list<float> values) {
    return values.begin()[random() % values.size()];
  };
  SamplingParams params;
  params.seed = random();
  params.temperature = of({0.f, 0.2f, 0.7f, 1.f, 1.5f});
  params.top_k = one_in(2) ? 0 : 1 + static_cast<int>(random() % most_top_k);
  params.top_p = of({1.f, 0.3f, 0.8f, 0.95f});
  params.min_p = of({0.f, 0.f, 0.05f, 0.3f, 1.f});
  if (one_in(3)) params.repetition_penalty = of({1.f, 1.1f, 2.f, 0.9f});
  if (one_in(3)) params.presence_penalty = of({0.5f, 2.f, -1.f});
  if (one_in(3)) params.frequency_penalty = of({0.1f, 1.f, -0.1f});
  if (one_in(4)) params.logit_bias = {{0, of({-1.f, -100.f, 3.f})}, {2, -0.5f}};
  return params;
}

}  // namespace hearth::worker::testing
