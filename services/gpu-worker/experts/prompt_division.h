// Who computes the experts that a long prompt needs and VRAM lacks: most are streamed to the GPU,
// and meanwhile the CPU computes the rest from RAM. What either side takes is measured all along:
// an expert's copy; and of the CPU a line, for much of its time goes with the rows that come and
// go, however few experts they are for. Engine's thread only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "common/base/line_fit.h"
#include "common/machine/machine_rates.h"

namespace hearth::worker {

class PromptDivision {
 public:
  // `row_bytes`: what a row moves over the link if the CPU takes part. Begins with the machine's
  // rates, careful with the CPU's.
  PromptDivision(const MachineRates& rates, uint64_t expert_bytes, uint64_t row_bytes);

  // Of the `n_missing` experts of the layer that comes, those that the CPU computes if the prompt
  // has n_rows rows: with them both sides end together, the CPU a little earlier. 0 where it gains
  // nothing. Not the same each time: a line needs different points.
  int CpuExperts(int n_missing, int n_rows);

  // What the copies of so many experts took, and the CPU's answer for so many and n_rows rows.
  void LearnCopies(int n_experts, double seconds);
  void LearnCpu(int n_rows, int n_experts, double seconds);

 private:
  // Prompts of a number of rows, up to a power of two.
  struct State {
    LineSums seen;    // of late: experts, seconds
    int layers = 0;   // planned
    int without = 0;  // the CPU, of late
  };
  State& Of(int n_rows);
  Line CpuLine(const State& state, int n_rows) const;

  const double expert_bytes_, row_bytes_;
  const double read_seconds_;  // an expert from RAM
  double copy_seconds_;        // an expert
  std::array<State, 32> states_;
};

}  // namespace hearth::worker
