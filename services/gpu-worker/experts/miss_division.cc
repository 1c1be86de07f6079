#include "services/gpu-worker/experts/miss_division.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "common/base/check.h"

namespace hearth::worker {
namespace {

// A trial every so many steps; more often at first.
constexpr int64_t kEvery = 16, kEveryAtFirst = 4, kFirstSteps = 96;
// What is remembered of a share's former steps when one more of it ends.
constexpr double kKeep = 0.9;
// Layers that a share must have been seen with, and the gain for which the share moves.
constexpr double kLeastLayers = 60, kGain = 0.98;

double Seconds(const LineSums& seen, double missed) {
  const std::optional<Line> line = FitLine(seen);
  return line.has_value() && line->slope > 0 ? line->start + line->slope * missed : seen.y / seen.n;
}

}  // namespace

int ReadInPlace(int n, double share) { return static_cast<int>(std::ceil(share * n - 0.5)); }

MissDivision::MissDivision(const MachineRates& rates) {
  const double suggested = rates.zero_copy / (rates.zero_copy + rates.ram);
  const auto* const nearest = std::ranges::min_element(
      kShares, {}, [&](double share) { return std::abs(share - suggested); });
  for (State& state : states_) state.arm = static_cast<int>(nearest - kShares.begin());
}

// The next share, in the direction that is due, that divides the misses of late otherwise; the
// present one if there is none.
int MissDivision::Trial(State* state) {
  const int n = std::max(1, static_cast<int>(std::lround(state->missed)));
  const int now = ReadInPlace(n, kShares[At(state->arm)]);
  const int step = state->is_upward ? 1 : -1;
  state->is_upward = !state->is_upward;
  for (int arm = state->arm + step; arm >= 0 && arm < static_cast<int>(kShares.size());
       arm += step) {
    if (ReadInPlace(n, kShares[At(arm)]) != now) return arm;
  }
  return state->arm;
}

void MissDivision::Plan(int n_rows, std::span<uint16_t> in_place) {
  HEARTH_CHECK(n_rows >= 1 && n_rows <= kMaxRows);
  State& state = states_[At(n_rows - 1)];
  const int64_t every = state.steps < kFirstSteps ? kEveryAtFirst : kEvery;
  tried_ = state.steps % every == every - 1 ? Trial(&state) : state.arm;
  current_ = &state;
  for (size_t n = 0; n < in_place.size(); ++n) {
    in_place[n] = static_cast<uint16_t>(ReadInPlace(static_cast<int>(n), kShares[At(tried_)]));
  }
}

void MissDivision::Learn(const LineSums& layers) {
  if (current_ == nullptr || layers.n == 0) return;
  State& state = *current_;
  ++state.steps;
  const double missed = layers.x / layers.n;
  state.missed = state.steps == 1 ? missed : state.missed * kKeep + missed * (1 - kKeep);
  AddSums(layers, kKeep, &state.seen[At(tried_)]);
  if (tried_ == state.arm) return;
  const LineSums &trial = state.seen[At(tried_)], &present = state.seen[At(state.arm)];
  if (trial.n < kLeastLayers || present.n < kLeastLayers) return;
  if (Seconds(trial, state.missed) < kGain * Seconds(present, state.missed)) state.arm = tried_;
}

}  // namespace hearth::worker
