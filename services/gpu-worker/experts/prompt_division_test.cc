#include "services/gpu-worker/experts/prompt_division.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace hearth::worker {
namespace {

constexpr uint64_t kBytes = 1'700'000;

TEST(PromptDivision, BeginsWithLittleForTheCpuWhereThereAreManyRows) {
  const PromptDivision division(MachineRates{}, kBytes);
  const int few = division.CpuExperts(400, 200), many = division.CpuExperts(400, 4000);
  EXPECT_GT(few, many);
  EXPECT_GT(many, 0);
  EXPECT_LT(few, 200);
  EXPECT_EQ(division.CpuExperts(0, 500), 0);
}

TEST(PromptDivision, BothSidesEndTogether) {
  for (const double cpu : {10e-6, 34e-6, 200e-6}) {
    PromptDivision division(MachineRates{}, kBytes);
    for (int i = 0; i < 40; ++i) {
      division.LearnCopies(32, 32 * 34e-6);
      division.LearnCpu(500, 100, 100 * cpu);
    }
    const int of_cpu = division.CpuExperts(400, 500);
    const double copies = (400 - of_cpu) * 34e-6, computing = of_cpu * cpu;
    EXPECT_LE(computing, copies) << cpu;
    EXPECT_GE(computing, 0.8 * copies) << cpu;
  }
}

TEST(PromptDivision, EachNumberOfRowsHasItsOwnTimes) {
  PromptDivision division(MachineRates{}, kBytes);
  const int before = division.CpuExperts(400, 2048);
  division.LearnCpu(512, 10, 10 * 20e-6);
  EXPECT_EQ(division.CpuExperts(400, 2048), before);
  EXPECT_GT(division.CpuExperts(400, 600), before);  // 512 .. 1023 are one
}

TEST(PromptDivision, AMeasurementOfNothingChangesNothing) {
  PromptDivision division(MachineRates{}, kBytes);
  const int before = division.CpuExperts(400, 300);
  division.LearnCopies(0, 1);
  division.LearnCopies(5, 0);
  division.LearnCpu(300, 0, 1);
  division.LearnCpu(300, 5, 0);
  EXPECT_EQ(division.CpuExperts(400, 300), before);
}

}  // namespace
}  // namespace hearth::worker
