// Who computes the experts that a decode step misses in VRAM: CPU threads from RAM, or the GPU,
// which reads them over PCIe where they lie. Both do it at once, so that the two rates add up,
// until RAM's own is reached; the division that ends first follows from how long each takes,
// measured all along.
#pragma once

#include <cstdint>
#include <span>

#include "common/base/line_fit.h"
#include "common/machine/machine_rates.h"

namespace hearth::worker {

// Seconds of a layer: what a side takes with n experts is start + n * slope.
struct MissCosts {
  Line gpu;  // the kernels that compute the hits, and with them what is read over PCIe
  Line cpu;  // from the request to the answer; nothing is asked for n = 0
};

// How many of `n` different missed experts the GPU reads itself, 0 .. n: the number with which both
// are done first.
int ReadInPlace(int n, const MissCosts& costs);

class MissDivision {
 public:
  MissDivision(const MachineRates& rates, uint64_t expert_bytes);

  // What a step measured, points (experts, seconds): of the GPU's kernels, x being those that it
  // read in place, and of the CPU's answers, x being those that it computed.
  void Learn(const LineSums& gpu, const LineSums& cpu);
  // in_place[n] for n missed experts.
  void Plan(std::span<uint16_t> in_place) const;
  const MissCosts& costs() const { return costs_; }

 private:
  MissCosts costs_;
  const double handshake_seconds_;
  LineSums gpu_, cpu_;
};

}  // namespace hearth::worker
