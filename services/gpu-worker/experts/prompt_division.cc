#include "services/gpu-worker/experts/prompt_division.h"

#include <algorithm>
#include <bit>
#include <optional>

namespace hearth::worker {
namespace {

// Of the number with which both sides would end together; and less in every second layer.
constexpr double kOfEqual = 0.95, kOfSecond = 0.75;
// Until it was measured, the CPU is taken to need as long again for every so many rows.
constexpr double kRowsOfARead = 512;
// The time that must be left, by these lines, of that without the CPU: they see neither the host's
// work between the layers nor that both read RAM, and 0.6 came as 0.81, 0.84 as 1.14
// (docs/numbers/gpu.md). And after how many layers without it the CPU's line is thrown away: it may
// have been a bad moment.
constexpr double kGain = 0.8;
constexpr int kTryAgain = 2000;
constexpr double kNew = 0.25;   // weight of a copy's time
constexpr double kKeep = 0.95;  // of the CPU's points, when one comes

}  // namespace

PromptDivision::PromptDivision(const MachineRates& rates, uint64_t expert_bytes, uint64_t row_bytes)
    : expert_bytes_(static_cast<double>(expert_bytes)),
      row_bytes_(static_cast<double>(row_bytes)),
      read_seconds_(expert_bytes_ / rates.ram),
      copy_seconds_(expert_bytes_ / rates.pcie) {}

PromptDivision::State& PromptDivision::Of(int n_rows) {
  const auto bits = static_cast<size_t>(std::bit_width(static_cast<unsigned>(std::max(n_rows, 0))));
  return states_[std::min(bits, states_.size() - 1)];
}

Line PromptDivision::CpuLine(const State& state, int n_rows) const {
  const std::optional<Line> fit = FitLine(state.seen);
  if (fit.has_value() && fit->slope > 0 && fit->start >= 0) return *fit;
  if (state.seen.x > 0) return {0, state.seen.y / state.seen.x};
  return {0, read_seconds_ * (1 + n_rows / kRowsOfARead)};
}

int PromptDivision::CpuExperts(int n_missing, int n_rows) {
  if (n_missing <= 0) return 0;
  State& state = Of(n_rows);
  const Line cpu = CpuLine(state, n_rows);
  const double alone = copy_seconds_ * n_missing;
  const double rows = copy_seconds_ * row_bytes_ / expert_bytes_ * n_rows;
  const double equal =
      std::clamp<double>((alone + rows - cpu.start) / (copy_seconds_ + cpu.slope), 0, n_missing);
  if (equal < 1 || std::max(alone + rows - equal * copy_seconds_, cpu.start + equal * cpu.slope) >
                       kGain * alone) {
    if (++state.without == kTryAgain) state = {};
    return 0;
  }
  state.without = 0;
  const double of_equal = ++state.layers % 2 == 0 ? kOfSecond : kOfEqual;
  return static_cast<int>(of_equal * equal);
}

void PromptDivision::LearnCopies(int n_experts, double seconds) {
  if (n_experts <= 0 || seconds <= 0) return;
  copy_seconds_ += kNew * (seconds / n_experts - copy_seconds_);
}

void PromptDivision::LearnCpu(int n_rows, int n_experts, double seconds) {
  if (n_experts <= 0 || seconds <= 0) return;
  LineSums point;
  AddPoint(n_experts, seconds, &point);
  AddSums(point, kKeep, &Of(n_rows).seen);
}

}  // namespace hearth::worker
