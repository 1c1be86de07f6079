// The device's largest logits against a sort of them all.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/top_logits_cuda.h"

namespace hearth::worker {
namespace {

using TopLogitsTest = CudaTest;
using Floats = std::vector<float>;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Calls for all rows at once, twice: the second must find the scratch as the first did.
std::vector<TopLogitsRow> Compute(const std::vector<Floats>& logits, const Floats& temperatures) {
  const auto n = static_cast<int>(logits.size()), vocabulary = static_cast<int>(logits[0].size());
  Floats all;
  for (const Floats& row : logits) all.insert(all.end(), row.begin(), row.end());
  const auto device_logits = ToDevice(all), device_temperatures = ToDevice(temperatures);
  DeviceBuffer<uint8_t> scratch;
  HEARTH_EXPECT_CUDA(scratch.Allocate(TopLogitsScratchBytes(n)));
  HEARTH_EXPECT_CUDA(cudaMemset(scratch.data(), 0, static_cast<size_t>(scratch.bytes())));
  auto rows = Poisoned<TopLogitsRow>(n);
  std::vector<TopLogitsRow> first;
  for (int i = 0; i < 2; ++i) {
    HEARTH_EXPECT_CUDA(TopLogitsCuda(n, vocabulary, device_logits.data(),
                                     device_temperatures.data(), scratch.data(), rows.data(),
                                     nullptr));
    const auto got = ToHost(rows);
    if (i == 1) {
      EXPECT_EQ(std::memcmp(got.data(), first.data(), sizeof(got[0]) * got.size()), 0);
    }
    first = got;
  }
  return first;
}

void ExpectTop(const TopLogitsRow& got, const Floats& logits, float temperature) {
  std::vector<int32_t> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const auto logit = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  std::ranges::sort(ids, [&](int32_t a, int32_t b) {
    return logit(a) > logit(b) || (logit(a) == logit(b) && a < b);
  });
  ASSERT_EQ(got.flags, TopLogitsRow::kFine);
  ASSERT_EQ(got.n, std::min<int>(kTopLogits, static_cast<int>(logits.size())));
  for (int i = 0; i < got.n; ++i) {
    ASSERT_EQ(got.ids[i], ids[static_cast<size_t>(i)]) << "place " << i;
    ASSERT_EQ(got.logits[i], logit(got.ids[i])) << "place " << i;
  }
  const double divisor = temperature == 0 ? 1 : temperature;
  EXPECT_EQ(got.temperature, static_cast<float>(divisor));
  double sum = 0;
  for (const float value : logits) sum += std::exp((double{value} - logit(ids[0])) / divisor);
  EXPECT_NEAR(got.weight_sum, sum, kWeightSumError / 4 * sum) << "temperature " << temperature;
}

TEST_F(TopLogitsTest, AreThoseOfASort) {
  std::mt19937 random(1);
  for (const int vocabulary : {1, 2, 255, 256, 257, 1000, 32768, 32769, 151936}) {
    std::vector<Floats> logits;
    const Floats temperatures = {0, 0.3f, 1, 2};
    for (const float size : {0.1f, 1.f, 3.f, 30.f}) {
      logits.push_back(RandomFloats(vocabulary, static_cast<uint32_t>(vocabulary) + 7, size));
    }
    for (int i = 0; i < 20; ++i) {  // ties, both zeros, what was ruled out
      logits[1][random() % logits[1].size()] = 5;
      logits[1][random() % logits[1].size()] = i % 2 == 0 ? 0.f : -0.f;
      if (vocabulary > 100) logits[2][random() % logits[2].size()] = -kInfinity;
    }
    const auto got = Compute(logits, temperatures);
    for (size_t r = 0; r < logits.size(); ++r) {
      ASSERT_NO_FATAL_FAILURE(ExpectTop(got[r], logits[r], temperatures[r])) << vocabulary;
    }
  }
}

TEST_F(TopLogitsTest, ManyEqualOnesGoByTheirIdsUntilTheyAreTooMany) {
  Floats few(5000, -3.f), many(5000, 1.f);
  for (size_t i = 0; i < 4000; ++i) few[4999 - i] = 2;
  const auto got = Compute({few, many}, {1, 1});
  ASSERT_NO_FATAL_FAILURE(ExpectTop(got[0], few, 1));
  EXPECT_EQ(got[1].flags, TopLogitsRow::kCrowded);
}

TEST_F(TopLogitsTest, BrokenRowsAreToldFromTheOthers) {
  const Floats fine = RandomFloats(3000, 5);
  Floats with_nan = fine, with_infinity = fine, with_nothing(fine.size(), -kInfinity);
  with_nan[2999] = std::nanf("");
  with_infinity[17] = kInfinity;
  const auto got = Compute({with_nan, fine, with_infinity, with_nothing}, {1, 1, 1, 1});
  EXPECT_EQ(got[0].flags, TopLogitsRow::kBroken);
  EXPECT_EQ(got[2].flags, TopLogitsRow::kBroken);
  EXPECT_EQ(got[3].flags, TopLogitsRow::kBroken);
  EXPECT_NO_FATAL_FAILURE(ExpectTop(got[1], fine, 1));
}

TEST_F(TopLogitsTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  const auto run = [](int n_rows, int vocabulary) {
    return TopLogitsCuda(n_rows, vocabulary, nullptr, nullptr, nullptr, nullptr, nullptr);
  };
  EXPECT_EQ(run(0, 10), cudaSuccess);
  EXPECT_EQ(run(1, 0), cudaErrorInvalidValue);
  EXPECT_EQ(run(-1, 10), cudaErrorInvalidValue);
  EXPECT_EQ(run(1, (1 << 24) + 1), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
