// Who computes the experts that a long prompt needs and VRAM lacks: most are streamed to the GPU,
// and meanwhile the CPU computes the rest from RAM. The share with which both end together follows
// from what an expert takes on either side, which is measured all along. Engine's thread only.
#pragma once

#include <array>
#include <cstdint>

#include "common/machine/machine_rates.h"

namespace hearth::worker {

class PromptDivision {
 public:
  // Begins with the machine's rates, careful with the CPU's.
  PromptDivision(const MachineRates& rates, uint64_t expert_bytes);

  // Of a layer's `n_missing` experts, how many the CPU computes if the prompt has n_rows rows.
  int CpuExperts(int n_missing, int n_rows) const;

  // What the copies of so many experts took, and the CPU's computing of so many for n_rows rows.
  void LearnCopies(int n_experts, double seconds);
  void LearnCpu(int n_rows, int n_experts, double seconds);

 private:
  double CpuSeconds(int n_rows) const;

  const double read_seconds_;  // an expert from RAM
  double copy_seconds_;        // an expert
  // An expert, by the bits of the number of rows; 0: not measured yet.
  std::array<double, 32> cpu_seconds_{};
};

}  // namespace hearth::worker
