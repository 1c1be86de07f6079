#include "services/gpu-worker/engine/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace hearth::worker {
namespace {

// The (fractional) pair index whose wave makes `turns` turns over the original context.
double PairWithTurns(const RopeConfig& rope, double turns) {
  return rope.rotary_dims *
         std::log(rope.original_max_position_embeddings / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

}  // namespace

RotaryTable MakeRotaryTable(const RopeConfig& rope) {
  RotaryTable table;
  const int half = rope.rotary_dims / 2;
  for (int j = 0; j < half; ++j) {
    table.inverse_frequencies.push_back(std::pow(rope.theta, -2.0 * j / rope.rotary_dims));
  }
  if (!rope.yarn) return table;
  const double low = std::max(std::floor(PairWithTurns(rope, rope.beta_fast)), 0.0);
  double high = std::min(std::ceil(PairWithTurns(rope, rope.beta_slow)), rope.rotary_dims - 1.0);
  if (high == low) high += 0.001;  // as the public implementation avoids the division by zero
  for (int j = 0; j < half; ++j) {
    const double ramp = std::clamp((j - low) / (high - low), 0.0, 1.0);
    table.inverse_frequencies[static_cast<size_t>(j)] *= ramp / rope.factor + 1 - ramp;
  }
  table.scale = rope.attention_factor;
  return table;
}

}  // namespace hearth::worker
