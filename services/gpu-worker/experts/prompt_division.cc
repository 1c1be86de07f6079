#include "services/gpu-worker/experts/prompt_division.h"

#include <algorithm>
#include <bit>

namespace hearth::worker {
namespace {

// Of the share with which both sides would end together: the link, which must never wait, gets a
// little more.
constexpr double kCpuShare = 0.95;
// Until it was measured, the CPU is taken to need as long again for every so many rows.
constexpr double kRowsOfARead = 128;
constexpr double kNew = 0.25;  // weight of a measurement

size_t Bits(int n_rows) {
  return static_cast<size_t>(std::bit_width(static_cast<unsigned>(std::max(n_rows, 0)))) % 32;
}

}  // namespace

PromptDivision::PromptDivision(const MachineRates& rates, uint64_t expert_bytes)
    : read_seconds_(static_cast<double>(expert_bytes) / rates.ram),
      copy_seconds_(static_cast<double>(expert_bytes) / rates.pcie) {}

double PromptDivision::CpuSeconds(int n_rows) const {
  const double measured = cpu_seconds_[Bits(n_rows)];
  return measured > 0 ? measured : read_seconds_ * (1 + n_rows / kRowsOfARead);
}

int PromptDivision::CpuExperts(int n_missing, int n_rows) const {
  const double share = copy_seconds_ / (copy_seconds_ + CpuSeconds(n_rows));
  return static_cast<int>(kCpuShare * share * n_missing);
}

void PromptDivision::LearnCopies(int n_experts, double seconds) {
  if (n_experts <= 0 || seconds <= 0) return;
  copy_seconds_ += kNew * (seconds / n_experts - copy_seconds_);
}

void PromptDivision::LearnCpu(int n_rows, int n_experts, double seconds) {
  if (n_experts <= 0 || seconds <= 0) return;
  double& known = cpu_seconds_[Bits(n_rows)];
  const double measured = seconds / n_experts;
  known = known > 0 ? known + kNew * (measured - known) : measured;
}

}  // namespace hearth::worker
