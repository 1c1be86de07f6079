#include "services/gpu-worker/experts/miss_division.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <vector>

namespace hearth::worker {
namespace {

using ::testing::DoubleNear;

LineSums Points(const Line& line, const std::vector<int>& xs) {
  LineSums sums;
  for (const int x : xs) AddPoint(x, line.start + x * line.slope, &sums);
  return sums;
}

TEST(LineFit, FindsTheLineOfItsPoints) {
  const auto line = FitLine(Points({3, 0.5}, {0, 1, 2, 7}));
  ASSERT_TRUE(line.has_value());
  EXPECT_THAT(line->start, DoubleNear(3, 1e-9));
  EXPECT_THAT(line->slope, DoubleNear(0.5, 1e-9));
  EXPECT_FALSE(FitLine(Points({3, 0.5}, {4, 4, 4})).has_value());
  EXPECT_FALSE(FitLine({}).has_value());
}

TEST(LineFit, ForgetsOldPoints) {
  LineSums sums = Points({10, 10}, {0, 1, 2, 3});
  for (int i = 0; i < 200; ++i) AddSums(Points({1, 2}, {0, 1, 2, 3}), 0.9, &sums);
  EXPECT_THAT(FitLine(sums)->slope, DoubleNear(2, 1e-6));
  EXPECT_LT(sums.n, 41);
}

TEST(MissDivision, HalvesGoToTheCpu) {
  EXPECT_EQ(ReadInPlace(0, 0.5), 0);
  EXPECT_EQ(ReadInPlace(1, 0.5), 0);
  EXPECT_EQ(ReadInPlace(2, 0.25), 0);
  EXPECT_EQ(ReadInPlace(3, 0.25), 1);
  EXPECT_EQ(ReadInPlace(80, 0.75), 60);
  EXPECT_EQ(ReadInPlace(80, 0), 0);
}

// Seconds of a layer with n missed experts, g of which are read in place.
using Machine = std::function<double(int n, int g)>;

// Steps of 48 layers whose misses lie around `mean`.
void Compute(MissDivision& division, const Machine& machine, int n_rows, int mean, int steps) {
  std::vector<uint16_t> in_place(101);
  for (int step = 0; step < steps; ++step) {
    division.Plan(n_rows, in_place);
    LineSums layers;
    for (int layer = 0; layer < 48; ++layer) {
      const int n = std::max(0, mean + layer % 8 - 4);
      AddPoint(n, machine(n, in_place[static_cast<size_t>(n)]), &layers);
    }
    division.Learn(layers);
  }
}

// Each side works alone.
Machine Sides(double gpu, double cpu) {
  return
      [=](int n, int g) { return std::max(16 + g * gpu, n == g ? 0 : 20 + (n - g) * cpu) * 1e-6; };
}

TEST(MissDivision, BeginsWithTheMachinesRates) {
  MachineRates rates;
  rates.ram = 75e9;
  rates.zero_copy = 25e9;
  const MissDivision division(rates);
  EXPECT_EQ(division.share(1), 0.25);
  EXPECT_EQ(division.share(8), 0.25);
}

TEST(MissDivision, FindsTheShareThatTakesLeastTime) {
  const struct {
    double gpu, cpu, want;
  } cases[] = {{40, 40, 0.5}, {120, 40, 0.25}, {400, 40, 0}, {20, 60, 0.75}};
  for (const auto& c : cases) {
    MissDivision division{MachineRates{}};
    Compute(division, Sides(c.gpu, c.cpu), 1, 8, 600);
    EXPECT_THAT(division.share(1), DoubleNear(c.want, 0.13)) << c.gpu << " " << c.cpu;
    EXPECT_EQ(division.share(2), MissDivision{MachineRates{}}.share(2)) << "of other rows";
  }
}

TEST(MissDivision, LeavesAllToTheCpuWhereReadingSlowsItDown) {
  // Each expert read in place costs the CPU more than it saves.
  MissDivision division{MachineRates{}};
  Compute(
      division, [](int n, int g) { return (20 + (n - g) * 30 + g * 45) * 1e-6; }, 1, 8, 800);
  EXPECT_EQ(ReadInPlace(4, division.share(1)), 0);
}

TEST(MissDivision, ReachesSharesBeyondThoseThatDivideAlike) {
  // Of two misses the smallest shares are all nothing.
  MissDivision division{MachineRates{}};
  Compute(division, Sides(500, 30), 1, 8, 400);
  ASSERT_EQ(division.share(1), 0);
  std::vector<uint16_t> in_place(11);
  for (int step = 0; step < 800; ++step) {
    division.Plan(1, in_place);
    LineSums layers;
    for (int layer = 0; layer < 48; ++layer) {
      AddPoint(2, (2 - in_place[2]) * 90e-6 + in_place[2] * 20e-6, &layers);
    }
    division.Learn(layers);
  }
  EXPECT_GE(ReadInPlace(2, division.share(1)), 1);
}

TEST(MissDivision, FollowsAMachineThatChanges) {
  MissDivision division{MachineRates{}};
  Compute(division, Sides(20, 60), 4, 20, 600);
  EXPECT_GE(division.share(4), 0.6);
  Compute(division, Sides(400, 40), 4, 20, 1200);
  EXPECT_LE(division.share(4), 0.13);
}

TEST(MissDivision, StepsThatMeasuredNothingChangeNothing) {
  MissDivision division{MachineRates{}};
  const double before = division.share(1);
  division.Learn({});
  std::vector<uint16_t> in_place(11);
  for (int step = 0; step < 200; ++step) {
    division.Plan(1, in_place);
    division.Learn({});
  }
  EXPECT_EQ(division.share(1), before);
}

}  // namespace
}  // namespace hearth::worker
