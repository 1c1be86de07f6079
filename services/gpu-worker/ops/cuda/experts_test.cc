// The grouped experts against sums in double, from slots packed as a segment packs experts.
#include "services/gpu-worker/ops/cuda/experts.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/experts_testing.h"

namespace hearth::worker {
namespace {

using ExpertsCudaTest = CudaTest;
using Floats = std::vector<float>;

Floats Compute(Slots& slots, int n_rows, int top_k, const Choice& choice, int first_row,
               const Floats& h) {
  ExpertsShape shape = slots.shape;
  shape.n_rows = n_rows, shape.top_k = top_k;
  const auto device_places = ToDevice(PlacesOf(slots, n_rows, top_k, choice, first_row));
  const auto device_h = ToDevice(h);
  auto act = Poisoned<float>(int64_t{n_rows} * top_k * shape.inner);
  auto out = Poisoned<float>(int64_t{n_rows} * shape.width + 1);
  HEARTH_EXPECT_CUDA(ExpertsCuda(shape, device_places.data(),
                                 device_h.data() + first_row * shape.width, act.data(), out.data(),
                                 nullptr));
  return ToHost(out);
}

std::vector<Product> Want(const Slots& slots, int row, int top_k, const Choice& choice,
                          const Floats& h) {
  std::vector<Product> sums(static_cast<size_t>(slots.shape.width));
  for (int p = row * top_k; p < (row + 1) * top_k; ++p) {
    const int e = choice.experts[static_cast<size_t>(p)];
    if (e < 0) continue;
    const Expert& expert = *slots.experts[static_cast<size_t>(e)];
    const float* x = h.data() + row * slots.shape.width;
    const auto gate = ProductsInDouble(expert.gate.ref, x), up = ProductsInDouble(expert.up.ref, x);
    Floats act;
    for (size_t i = 0; i < gate.size(); ++i) {
      act.push_back(
          static_cast<float>(gate[i].value / (1 + std::exp(-gate[i].value)) * up[i].value));
    }
    const auto down = ProductsInDouble(expert.down.ref, act.data());
    const double weight = choice.weights[static_cast<size_t>(p)];
    for (size_t i = 0; i < down.size(); ++i) {
      sums[i].value += weight * down[i].value, sums[i].size += std::abs(weight) * down[i].size;
    }
  }
  return sums;
}

TEST_F(ExpertsCudaTest, SumsAgreeWithThoseInDouble) {
  struct Case {
    int width, inner, top_k, n_rows;
  };
  for (const auto& [width, inner, top_k, n_rows] :
       {Case{64, 64, 1, 1}, {128, 192, 3, 2}, {320, 64, 10, 8}, {2048, 512, 10, 3}}) {
    Slots slots(12, width, inner);
    const Floats h = RandomFloats(int64_t{n_rows} * width, 5, 0.1f);
    for (const bool with_absent : {false, true}) {
      const Choice choice = Choose(n_rows, top_k, 12, with_absent);
      const Floats got = Compute(slots, n_rows, top_k, choice, 0, h);
      EXPECT_TRUE(std::isnan(got.back())) << "wrote past the end";
      for (int t = 0; t < n_rows; ++t) {
        const auto want = Want(slots, t, top_k, choice, h);
        for (int i = 0; i < width; ++i) {
          const Product& sum = want[static_cast<size_t>(i)];
          // act's own error is a few 1e-6 of its terms, of which the products keep the size.
          ASSERT_NEAR(got[static_cast<size_t>(t * width + i)], sum.value, 2e-5 * sum.size + 1e-7)
              << width << " x " << inner << ", row " << t << " column " << i;
        }
      }
    }
  }
}

TEST_F(ExpertsCudaTest, ARowsBitsDoNotDependOnItsBatch) {
  constexpr int kRows = 8, kTopK = 10, kWidth = 512;
  Slots slots(7, kWidth, 128);
  const Floats h = RandomFloats(kRows * kWidth, 6);
  const Choice choice = Choose(kRows, kTopK, 7, true);
  const Floats all = Compute(slots, kRows, kTopK, choice, 0, h);
  for (int t = 0; t < kRows; ++t) {
    const Floats one = Compute(slots, 1, kTopK, choice, t, h);
    EXPECT_TRUE(std::equal(one.begin(), one.end() - 1, all.begin() + t * kWidth)) << t;
  }
}

TEST_F(ExpertsCudaTest, ARowWithoutSlotsIsZero) {
  Slots slots(1, 128, 64);
  const Choice choice = {.experts = {-1, -1}, .weights = {1, 1}};
  Floats got = Compute(slots, 1, 2, choice, 0, RandomFloats(128, 7));
  got.pop_back();
  EXPECT_EQ(got, Floats(128, 0.f));
}

TEST_F(ExpertsCudaTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  const auto run = [](const ExpertsShape& shape) {
    return ExpertsCuda(shape, nullptr, nullptr, nullptr, nullptr, nullptr);
  };
  EXPECT_EQ(run({.n_rows = 0, .top_k = 2, .width = 64, .inner = 64}), cudaSuccess);
  EXPECT_EQ(run({.n_rows = 1, .top_k = 2, .width = 96, .inner = 64}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = 1, .top_k = 2, .width = 64, .inner = 80}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = 1, .top_k = 65, .width = 64, .inner = 64}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = -1, .top_k = 2, .width = 64, .inner = 64}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
