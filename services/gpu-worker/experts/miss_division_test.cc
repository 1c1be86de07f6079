#include "services/gpu-worker/experts/miss_division.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace hearth::worker {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

double Seconds(int n, int in_place, const MissCosts& costs) {
  const double gpu = costs.gpu.start + in_place * costs.gpu.slope;
  const int rest = n - in_place;
  return std::max(gpu, rest == 0 ? 0 : costs.cpu.start + rest * costs.cpu.slope);
}

LineSums Points(const Line& line, std::vector<int> xs) {
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

TEST(ReadInPlace, EndsFirst) {
  const MissCosts cases[] = {{{10, 34}, {8, 30}},  // alike
                             {{10, 68}, {8, 20}},  // a slow link
                             {{10, 20}, {8, 90}},  // a slow CPU
                             {{60, 34}, {8, 30}},  // many hits to compute meanwhile
                             {{0, 1}, {1000, 1}}};
  for (const MissCosts& costs : cases) {
    for (int n = 0; n <= 80; ++n) {
      const int chosen = ReadInPlace(n, costs);
      for (int other = 0; other <= n; ++other) {
        EXPECT_LE(Seconds(n, chosen, costs), Seconds(n, other, costs)) << n << " " << other;
      }
    }
  }
}

TEST(ReadInPlace, LeavesToTheCpuWhatCostsNothingThere) {
  // The hits take longer than the CPU needs.
  EXPECT_EQ(ReadInPlace(2, {{100, 30}, {8, 30}}), 0);
}

TEST(MissDivision, BeginsWithTheMachinesRates) {
  MachineRates rates;
  rates.ram = 50e9;
  rates.zero_copy = 30e9;
  rates.handshake_seconds = 0;
  const MissDivision division(rates, 1'800'000);
  std::vector<uint16_t> plan(7);
  division.Plan(plan);
  EXPECT_THAT(plan, ElementsAre(0, 0, 1, 1, 1, 2, 2));
}

TEST(MissDivision, FollowsWhatIsMeasured) {
  MissDivision division(MachineRates{}, 1'800'000);
  const double handshake = MachineRates{}.handshake_seconds;
  for (int step = 0; step < 100; ++step) {
    division.Learn(Points({20e-6, 40e-6}, {0, 1, 2, 3}), Points({9e-6, 15e-6}, {1, 2, 5}));
  }
  EXPECT_THAT(division.costs().gpu.start, DoubleNear(20e-6, 1e-9));
  EXPECT_THAT(division.costs().gpu.slope, DoubleNear(40e-6, 1e-9));
  EXPECT_THAT(division.costs().cpu.start, DoubleNear(9e-6 + handshake, 1e-9));
  EXPECT_THAT(division.costs().cpu.slope, DoubleNear(15e-6, 1e-9));
}

TEST(MissDivision, LearnsTheSlopeFromEqualPoints) {
  MissDivision division(MachineRates{}, 1'800'000);
  const double handshake = MachineRates{}.handshake_seconds;
  for (int step = 0; step < 100; ++step) {
    division.Learn(Points({0, 40e-6}, {2, 2, 2}), Points({0, 70e-6}, {3, 3, 3}));
  }
  EXPECT_THAT(division.costs().gpu.slope, DoubleNear(40e-6, 1e-8));
  EXPECT_THAT(division.costs().cpu.slope, DoubleNear(70e-6, 1e-8));
  EXPECT_THAT(division.costs().cpu.start, DoubleNear(handshake, 1e-9));
}

TEST(MissDivision, KeepsItsCostsWithoutMeasurements) {
  MissDivision division(MachineRates{}, 1'800'000);
  const MissCosts before = division.costs();
  for (int step = 0; step < 10; ++step) division.Learn({}, {});
  EXPECT_EQ(division.costs().gpu.slope, before.gpu.slope);
  EXPECT_EQ(division.costs().cpu.slope, before.cpu.slope);
  EXPECT_EQ(division.costs().cpu.start, before.cpu.start);
}

TEST(MissDivision, NeverTakesNoiseForGain) {
  // More experts in less time.
  MissDivision division(MachineRates{}, 1'800'000);
  for (int step = 0; step < 50; ++step) {
    LineSums points;
    AddPoint(1, 90e-6, &points);
    AddPoint(8, 20e-6, &points);
    division.Learn(points, points);
  }
  EXPECT_GT(division.costs().gpu.slope, 0);
  EXPECT_GT(division.costs().cpu.slope, 0);
}

}  // namespace
}  // namespace hearth::worker
