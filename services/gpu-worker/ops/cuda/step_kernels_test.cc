#include "services/gpu-worker/ops/cuda/step_kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/tensor/linear.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"

namespace hearth::worker {
namespace {

using StepKernelsTest = CudaTest;
using Floats = std::vector<float>;

TEST_F(StepKernelsTest, EmbeddingsAreTheTablesRows) {
  constexpr int kVocabulary = 50, kRows = 7;
  const std::vector<int32_t> ids = {49, 0, 3, 3, 17, 48, 1};
  const auto d_ids = ToDevice(ids);
  for (const int width : {4, 100, 1024, 2052}) {
    const Floats table = RandomFloats(int64_t{kVocabulary} * width, static_cast<uint32_t>(width));
    std::vector<uint16_t> halves(table.size());
    std::ranges::transform(table, halves.begin(), F32ToBF16);
    const auto d_table = ToDevice(table);
    const auto d_halves = ToDevice(halves);
    for (const int bits : {16, 32}) {
      auto x = Poisoned<float>(int64_t{kRows} * width + 1);
      const void* from = bits == 16 ? static_cast<const void*>(d_halves.data()) : d_table.data();
      HEARTH_EXPECT_CUDA(EmbedCuda(kRows, width, bits, from, d_ids.data(), x.data(), nullptr));
      const Floats got = ToHost(x);
      for (int i = 0; i < kRows * width; ++i) {
        const auto at =
            static_cast<size_t>(ids[static_cast<size_t>(i / width)] * width + i % width);
        const float want = bits == 16 ? BF16ToF32(halves[at]) : table[at];
        ASSERT_EQ(got[static_cast<size_t>(i)], want)
            << bits << " bits, width " << width << ", " << i;
      }
      EXPECT_TRUE(IsPoison(got.back()));
    }
  }
  EXPECT_EQ(EmbedCuda(0, 4, 16, nullptr, nullptr, nullptr, nullptr), cudaSuccess);
  EXPECT_EQ(EmbedCuda(1, 6, 16, nullptr, nullptr, nullptr, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(EmbedCuda(1, 4, 8, nullptr, nullptr, nullptr, nullptr), cudaErrorInvalidValue);
}

TEST_F(StepKernelsTest, SiluOfTheGateTimesUp) {
  for (const int n : {4, 1000, 1024, 4100}) {
    Floats gate = RandomFloats(n, 1, 4), up = RandomFloats(n, 2);
    gate[0] = -200, gate[1] = 200, gate[2] = 0, gate[3] = -0.f;
    auto d_gate = ToDevice(gate);
    const auto d_up = ToDevice(up);
    HEARTH_EXPECT_CUDA(SiluMulCuda(n, d_gate.data(), d_up.data(), nullptr));
    const Floats got = ToHost(d_gate);
    for (int i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(i);
      const double want = double{gate[at]} / (1 + std::exp(-double{gate[at]})) * up[at];
      ASSERT_NEAR(got[at], want, 1e-6 * std::abs(want) + 1e-30) << i << " of " << n;
    }
  }
  EXPECT_EQ(SiluMulCuda(0, nullptr, nullptr, nullptr), cudaSuccess);
  EXPECT_EQ(SiluMulCuda(6, nullptr, nullptr, nullptr), cudaErrorInvalidValue);
}

TEST_F(StepKernelsTest, Float32ProductsOfAnySizes) {
  struct Sizes {
    int out, in;
  };
  for (const Sizes size : {Sizes{1, 1}, Sizes{31, 33}, Sizes{8, 32}, Sizes{65, 512}}) {
    for (const int n_rows : {1, 7, 8, 9, 20}) {
      const Floats weights = RandomFloats(int64_t{size.out} * size.in, 3),
                   x = RandomFloats(int64_t{n_rows} * size.in, 4);
      const auto d_weights = ToDevice(weights), d_x = ToDevice(x);
      auto y = Poisoned<float>(int64_t{n_rows} * size.out + 1);
      HEARTH_EXPECT_CUDA(F32LinearCuda(d_weights.data(), size.out, size.in, n_rows, d_x.data(),
                                       y.data(), nullptr));
      const Floats got = ToHost(y);
      for (int i = 0; i < n_rows * size.out; ++i) {
        const float* row = x.data() + i / size.out * size.in;
        const float* w = weights.data() + i % size.out * size.in;
        double want = 0, magnitude = 0;
        for (int k = 0; k < size.in; ++k) {
          want += double{row[k]} * w[k], magnitude += std::abs(double{row[k]} * w[k]);
        }
        ASSERT_NEAR(got[static_cast<size_t>(i)], want, 1e-6 * magnitude)
            << size.out << " x " << size.in << ", " << n_rows << " rows, " << i;
      }
      EXPECT_TRUE(IsPoison(got.back()));
    }
  }
}

// A row's sum has the same bits in any company.
TEST_F(StepKernelsTest, Float32ProductsOfARowDoNotDependOnTheOthers) {
  constexpr int kOut = 40, kIn = 300, kRows = 13;
  const auto weights = ToDevice(RandomFloats(kOut * kIn, 1));
  const auto x = ToDevice(RandomFloats(kRows * kIn, 2));
  auto all = Poisoned<float>(kRows * kOut), one = Poisoned<float>(kOut);
  HEARTH_EXPECT_CUDA(
      F32LinearCuda(weights.data(), kOut, kIn, kRows, x.data(), all.data(), nullptr));
  const Floats together = ToHost(all);
  for (int row = 0; row < kRows; ++row) {
    HEARTH_EXPECT_CUDA(
        F32LinearCuda(weights.data(), kOut, kIn, 1, x.data() + row * kIn, one.data(), nullptr));
    const Floats alone = ToHost(one);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + row * kOut)) << row;
  }
}

}  // namespace
}  // namespace hearth::worker
