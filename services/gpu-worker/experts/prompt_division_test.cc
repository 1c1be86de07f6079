#include "services/gpu-worker/experts/prompt_division.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace hearth::worker {
namespace {

constexpr uint64_t kBytes = 1'700'000;
constexpr double kCopy = 34e-6;

// Layers with 400 missing experts, on a machine whose CPU takes start + n * slope.
int LastOf(PromptDivision& division, int n_layers, int n_rows, const Line& cpu) {
  int most = 0;
  for (int i = 0; i < n_layers; ++i) {
    const int n = division.CpuExperts(400, n_rows);
    division.LearnCopies(400 - n, (400 - n) * kCopy);
    division.LearnCpu(n_rows, n, cpu.start + n * cpu.slope);
    if (i + 2 >= n_layers) most = std::max(most, n);
  }
  return most;
}

TEST(PromptDivision, BeginsWithLittleForTheCpuWhereThereAreManyRows) {
  PromptDivision division(MachineRates{}, kBytes, 0);
  const int few = division.CpuExperts(400, 200), many = division.CpuExperts(400, 4000);
  EXPECT_GT(few, many);
  EXPECT_GT(many, 0);
  EXPECT_LT(few, 280);
  EXPECT_EQ(division.CpuExperts(0, 500), 0);
}

TEST(PromptDivision, BothSidesEndTogether) {
  const Line cpus[] = {{0, 10e-6}, {400e-6, 34e-6}, {2e-3, 30e-6}, {0, 90e-6}};
  for (const Line& cpu : cpus) {
    PromptDivision division(MachineRates{}, kBytes, 0);
    const int n = LastOf(division, 100, 500, cpu);
    const double copies = (400 - n) * kCopy, computing = cpu.start + n * cpu.slope;
    EXPECT_LE(computing, 1.01 * copies) << cpu.start << " " << cpu.slope;
    EXPECT_GE(computing, 0.75 * copies) << cpu.start << " " << cpu.slope;
  }
}

// A fixed cost that is taken for that of each expert would leave the CPU ever fewer.
TEST(PromptDivision, AFixedCostIsNotTakenForThatOfAnExpert) {
  PromptDivision division(MachineRates{}, kBytes, 0);
  division.LearnCpu(500, 4, 4 * 20e-6 + 600e-6);
  EXPECT_GT(LastOf(division, 100, 500, {600e-6, 20e-6}), 150);
}

TEST(PromptDivision, ACpuThatGainsNothingIsLeftAloneAndTriedAgainMuchLater) {
  PromptDivision division(MachineRates{}, kBytes, 16384);
  EXPECT_EQ(LastOf(division, 60, 1000, {30e-3, 100e-6}), 0);
  EXPECT_EQ(LastOf(division, 1000, 1000, {1e-3, 10e-6}), 0);
  EXPECT_GT(LastOf(division, 1100, 1000, {1e-3, 10e-6}), 100);
}

TEST(PromptDivision, RowsThatCostMoreThanTheCpuSavesStayOnTheGpu) {
  PromptDivision division(MachineRates{}, kBytes, 16384);
  EXPECT_GT(LastOf(division, 100, 500, {0, 50e-6}), 0);
  PromptDivision far(MachineRates{}, kBytes, uint64_t{1} << 20);
  EXPECT_EQ(LastOf(far, 100, 500, {0, 50e-6}), 0);
}

TEST(PromptDivision, ASmallGainOnPaperIsNone) {
  PromptDivision division(MachineRates{}, kBytes, 0);
  EXPECT_EQ(LastOf(division, 100, 500, {0, 200e-6}), 0);  // 0.85 of the time
}

TEST(PromptDivision, EachNumberOfRowsHasItsOwnTimes) {
  PromptDivision division(MachineRates{}, kBytes, 0), other(MachineRates{}, kBytes, 0);
  LastOf(division, 50, 512, {0, 20e-6});
  LastOf(other, 50, 512, {0, 100e-6});
  EXPECT_EQ(division.CpuExperts(400, 2048), other.CpuExperts(400, 2048));
  EXPECT_GT(division.CpuExperts(400, 600), other.CpuExperts(400, 600));  // 512 .. 1023 are one
}

TEST(PromptDivision, AMeasurementOfNothingChangesNothing) {
  PromptDivision division(MachineRates{}, kBytes, 0), other(MachineRates{}, kBytes, 0);
  division.LearnCopies(0, 1);
  division.LearnCopies(5, 0);
  division.LearnCpu(300, 0, 1);
  division.LearnCpu(300, 5, 0);
  EXPECT_EQ(division.CpuExperts(400, 300), other.CpuExperts(400, 300));
}

}  // namespace
}  // namespace hearth::worker
