// What a copy of an expert into VRAM costs on this machine, for the policies' rule.
//
// All in seconds for an expert of B bytes. A miss costs the CPU B / ram, since computing it reads
// it once from RAM; a hit costs the GPU B / vram. So a use that becomes a hit gains the difference.
// The copy reads the expert from RAM too. Whether PCIe is fast or slow, the CPU's threads lose
// these B bytes of bandwidth while they compute the misses of the meantime: B / ram. Hence
//   cost in misses = (B / ram) / (B / ram - B / vram) = 1 / (1 - ram / vram),
// 1.03 for an H100 host, 1.1 for a desktop: one use and a little. B itself falls out.
//
// PCIe's rate bounds how many copies a step's time has room for: AdmissionsPerStep.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/machine/machine_rates.h"

namespace hearth::worker {

// Victims are chosen for being cold and candidates for being hot, so both differ from what comes by
// less than they seem to. Twice the cost gave the fewest reads of RAM on recorded and made-up
// traces (docs/numbers/cache.md).
inline constexpr double kSelectionMargin = 2;

// For PolicyOptions.admission_cost. Huge where the GPU's memory is no faster than RAM: nothing is
// gained then.
inline double AdmissionCost(const MachineRates& rates) {
  const double gain = 1 - rates.ram / rates.vram;
  return gain > 1e-3 ? kSelectionMargin / gain : kSelectionMargin * 1e3;
}

// Copies that the link can carry in a step of this length.
inline int AdmissionsPerStep(const MachineRates& rates, uint64_t expert_bytes,
                             double step_seconds) {
  const double n =
      rates.pcie * step_seconds / static_cast<double>(std::max<uint64_t>(1, expert_bytes));
  return static_cast<int>(std::clamp(std::floor(n), 0.0, 1e6));
}

}  // namespace hearth::worker
