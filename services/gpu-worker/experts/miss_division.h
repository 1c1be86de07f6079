// Who computes the experts that a decode step misses in VRAM: CPU threads from RAM, or the GPU,
// which reads them over PCIe where they lie ("in place"). Both do it at once, so that their rates
// add up.
//
// Which share is best for the GPU follows from no two rates: the two slow each other down in RAM,
// and by how much depends on the machine. So it is tried out: now and then a step takes the next
// larger or smaller share, and the share moves where layers take less time. Engine's thread only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/base/line_fit.h"
#include "common/machine/machine_rates.h"

namespace hearth::worker {

class MissDivision {
 public:
  static constexpr int kMaxRows = 8;  // of a step
  static constexpr std::array<double, 7> kShares = {0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75};

  // Begins with the share that the machine's rates suggest.
  explicit MissDivision(const MachineRates& rates);

  // For the next step, of 1 .. kMaxRows rows: of n different missed experts the GPU reads
  // in_place[n] itself.
  void Plan(int n_rows, std::span<uint16_t> in_place);
  // What that step's layers took: points (different missed experts, seconds).
  void Learn(const LineSums& layers);

  // That steps of so many rows take now, but for trials.
  double share(int n_rows) const { return kShares[At(states_[At(n_rows - 1)].arm)]; }

 private:
  // Steps of one number of rows.
  struct State {
    int arm = 0;
    int64_t steps = 0;
    bool is_upward = true;                        // the next trial
    double missed = 0;                            // a layer, of late
    std::array<LineSums, kShares.size()> seen{};  // of late
  };
  static size_t At(int i) { return static_cast<size_t>(i); }
  static int Trial(State* state);

  std::array<State, kMaxRows> states_;
  State* current_ = nullptr;  // of the step that was planned
  int tried_ = 0;
};

// round(share * n), halves down.
int ReadInPlace(int n, double share);

}  // namespace hearth::worker
