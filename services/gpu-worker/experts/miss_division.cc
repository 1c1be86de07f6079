#include "services/gpu-worker/experts/miss_division.h"

#include <algorithm>

namespace hearth::worker {
namespace {

// Each step forgets a twentieth: with 48 layers a step, the last thousand layers count.
constexpr double kKeep = 0.95;

// `line` as the points say; where they all have much the same x, its slope alone is theirs. Costs
// never fall with n, whatever noise says.
void Follow(const LineSums& sums, Line* line) {
  if (sums.n < 1 || sums.x <= 0) return;
  const std::optional<Line> fit = FitLine(sums);
  if (fit.has_value() && fit->slope > 0 && fit->start >= 0) {
    *line = *fit;
    return;
  }
  const double slope = (sums.y - line->start * sums.n) / sums.x;
  line->slope = slope > 0 ? slope : sums.y / sums.x;
}

}  // namespace

int ReadInPlace(int n, const MissCosts& costs) {
  int best = 0;
  double best_seconds = 0;
  for (int in_place = 0; in_place <= n; ++in_place) {
    const double gpu = costs.gpu.start + in_place * costs.gpu.slope;
    const int rest = n - in_place;
    const double cpu = rest == 0 ? 0 : costs.cpu.start + rest * costs.cpu.slope;
    const double seconds = std::max(gpu, cpu);
    if (in_place > 0 && seconds >= best_seconds) continue;
    best = in_place;
    best_seconds = seconds;
  }
  return best;
}

MissDivision::MissDivision(const MachineRates& rates, uint64_t expert_bytes)
    : handshake_seconds_(rates.handshake_seconds) {
  const auto bytes = static_cast<double>(expert_bytes);
  costs_.gpu = {0, bytes / rates.zero_copy};
  costs_.cpu = {handshake_seconds_, bytes / rates.ram};
}

void MissDivision::Learn(const LineSums& gpu, const LineSums& cpu) {
  AddSums(gpu, kKeep, &gpu_);
  AddSums(cpu, kKeep, &cpu_);
  Follow(gpu_, &costs_.gpu);
  Line answer = {costs_.cpu.start - handshake_seconds_, costs_.cpu.slope};
  Follow(cpu_, &answer);
  costs_.cpu = {answer.start + handshake_seconds_, answer.slope};
}

void MissDivision::Plan(std::span<uint16_t> in_place) const {
  for (size_t n = 0; n < in_place.size(); ++n) {
    in_place[n] = static_cast<uint16_t>(ReadInPlace(static_cast<int>(n), costs_));
  }
}

}  // namespace hearth::worker
