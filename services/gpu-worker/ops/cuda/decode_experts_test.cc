// The integer experts against the same scheme in double, from slots packed as a segment packs them.
#include "services/gpu-worker/ops/cuda/decode_experts.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/experts_testing.h"
#include "services/gpu-worker/ops/cuda/norm_cuda.h"
#include "services/gpu-worker/ops/cuda/rounded_testing.h"

namespace hearth::worker {
namespace {

using DecodeExpertsTest = CudaTest;
using Floats = std::vector<float>;

struct Result {
  Floats act;  // of all places; poisoned where the expert is not here
  Floats out;  // with one poisoned value behind
};

Result Compute(Slots& slots, int n_rows, int top_k, const Choice& choice, int first_row,
               const Floats& h) {
  ExpertsShape shape = slots.shape;
  shape.n_rows = n_rows, shape.top_k = top_k;
  const auto places = ToDevice(PlacesOf(slots, n_rows, top_k, choice, first_row));
  const auto device_h = ToDevice(h);
  auto act = Poisoned<float>(int64_t{n_rows} * top_k * shape.inner);
  auto out = Poisoned<float>(int64_t{n_rows} * shape.width + 1);
  const auto levels = MakeDecodeLevels(slots.experts[0]->gate.ref.levels);
  HEARTH_EXPECT_CUDA(DecodeExpertsCuda(shape, levels.value(), places.data(),
                                       device_h.data() + first_row * shape.width, act.data(),
                                       out.data(), nullptr));
  return {ToHost(act), ToHost(out)};
}

// act of one place, with an error that the sizes of its two products allow.
void ExpectAct(const Expert& expert, const float* h, const float* got) {
  const Floats x = RoundedToInt8(h, expert.gate.ref.in);
  const auto gate = ProductsInDouble(WithRoundedLevels(expert.gate.ref), x.data());
  const auto up = ProductsInDouble(WithRoundedLevels(expert.up.ref), x.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double silu = gate[i].value / (1 + std::exp(-gate[i].value));
    const double slack = 1.1 * gate[i].size * std::abs(up[i].value) + std::abs(silu) * up[i].size;
    ASSERT_NEAR(got[i], silu * up[i].value, 3e-6 * slack + 1e-9) << "act " << i;
  }
}

// One row of the result, from the act that the device had: which rounds to the same integers.
void ExpectRow(const Slots& slots, int row, int top_k, const Choice& choice, const Floats& h,
               const Result& got) {
  const int width = slots.shape.width, inner = slots.shape.inner;
  std::vector<Product> sums(static_cast<size_t>(width));
  for (int p = row * top_k; p < (row + 1) * top_k; ++p) {
    const int e = choice.experts[static_cast<size_t>(p)];
    const float* act = got.act.data() + static_cast<long>(p) * inner;
    if (e < 0) {
      EXPECT_TRUE(IsPoison(*act)) << "wrote act of an expert that is not here";
      continue;
    }
    const Expert& expert = *slots.experts[static_cast<size_t>(e)];
    ASSERT_NO_FATAL_FAILURE(ExpectAct(expert, h.data() + static_cast<long>(row) * width, act))
        << "place " << p;
    const auto down =
        ProductsInDouble(WithRoundedLevels(expert.down.ref), RoundedToInt8(act, inner).data());
    const double weight = choice.weights[static_cast<size_t>(p)];
    for (size_t i = 0; i < down.size(); ++i) {
      sums[i].value += weight * down[i].value, sums[i].size += std::abs(weight) * down[i].size;
    }
  }
  for (int i = 0; i < width; ++i) {
    const Product& sum = sums[static_cast<size_t>(i)];
    ASSERT_NEAR(got.out[static_cast<size_t>(row * width + i)], sum.value, 3e-6 * sum.size + 1e-9)
        << width << " x " << inner << ", row " << row << " column " << i;
  }
}

TEST_F(DecodeExpertsTest, SumsAgreeWithTheSchemeInDouble) {
  struct Case {
    int width, inner, top_k, n_rows, n_experts;
  };
  // Of the last ones, more places than eight share an expert, also within a row.
  for (const auto& [width, inner, top_k, n_rows, n_experts] :
       {Case{64, 64, 1, 1, 2}, Case{128, 192, 3, 2, 12}, Case{320, 64, 10, 8, 12},
        Case{2048, 512, 10, 3, 12}, Case{192, 64, 11, 8, 2}, Case{128, 128, 9, 7, 1}}) {
    Slots slots(n_experts, width, inner);
    const Floats h = RandomFloats(int64_t{n_rows} * width, 5, 0.1f);
    for (const bool with_absent : {false, true}) {
      const Choice choice = Choose(n_rows, top_k, n_experts, with_absent);
      const Result got = Compute(slots, n_rows, top_k, choice, 0, h);
      EXPECT_TRUE(IsPoison(got.out.back())) << "wrote past the end";
      for (int t = 0; t < n_rows; ++t) {
        ASSERT_NO_FATAL_FAILURE(ExpectRow(slots, t, top_k, choice, h, got));
      }
    }
  }
}

TEST_F(DecodeExpertsTest, ARowsBitsDoNotDependOnItsBatch) {
  constexpr int kRows = 8, kTopK = 10, kWidth = 512;
  for (const int n_experts : {3, 7}) {
    Slots slots(n_experts, kWidth, 128);
    const Floats h = RandomFloats(kRows * kWidth, 6);
    const Choice choice = Choose(kRows, kTopK, n_experts, true);
    const Floats all = Compute(slots, kRows, kTopK, choice, 0, h).out;
    for (int t = 0; t < kRows; ++t) {
      const Floats one = Compute(slots, 1, kTopK, choice, t, h).out;
      EXPECT_TRUE(std::equal(one.begin(), one.end() - 1, all.begin() + t * kWidth)) << t;
    }
  }
}

TEST_F(DecodeExpertsTest, RowsThatCameRoundedGiveTheSameBits) {
  constexpr int kTopK = 10, kWidth = 512;
  Slots slots(7, kWidth, 128);
  for (const int n_rows : {1, 5}) {
    auto x = ToDevice(RandomFloats(n_rows * kWidth, 8));
    const auto weight = ToDevice(RandomFloats(kWidth, 9));
    auto h = Poisoned<float>(n_rows * kWidth);
    RoundedBuffer rounded(n_rows, kWidth);
    HEARTH_EXPECT_CUDA(AddRmsNormCuda(n_rows, kWidth, x.data(), {}, weight.data(), 1e-6f, h.data(),
                                      rounded.rows(), nullptr));
    ExpertsShape shape = slots.shape;
    shape.n_rows = n_rows, shape.top_k = kTopK;
    const Choice choice = Choose(n_rows, kTopK, 7, true);
    const auto places = ToDevice(PlacesOf(slots, n_rows, kTopK, choice, 0));
    const auto levels = MakeDecodeLevels(slots.experts[0]->gate.ref.levels).value();
    const auto compute = [&](const RoundedRows& with) {
      auto act = Poisoned<float>(int64_t{n_rows} * kTopK * shape.inner);
      auto out = Poisoned<float>(int64_t{n_rows} * kWidth);
      HEARTH_EXPECT_CUDA(DecodeExpertsCuda(shape, levels, places.data(), h.data(), with, act.data(),
                                           out.data(), nullptr));
      return ToHost(out);
    };
    EXPECT_EQ(compute(rounded.rows()), compute({}));
  }
}

TEST_F(DecodeExpertsTest, ARowWithoutSlotsIsZero) {
  Slots slots(1, 128, 64);
  const Choice choice = {.experts = {-1, -1}, .weights = {1, 1}};
  Floats got = Compute(slots, 1, 2, choice, 0, RandomFloats(128, 7)).out;
  got.pop_back();
  EXPECT_EQ(got, Floats(128, 0.f));
}

TEST_F(DecodeExpertsTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  const auto run = [](const ExpertsShape& shape) {
    return DecodeExpertsCuda(shape, {}, nullptr, nullptr, nullptr, nullptr, nullptr);
  };
  EXPECT_EQ(run({.n_rows = 0, .top_k = 2, .width = 64, .inner = 64}), cudaSuccess);
  EXPECT_EQ(run({.n_rows = 9, .top_k = 2, .width = 64, .inner = 64}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = 1, .top_k = 2, .width = 96, .inner = 64}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = 1, .top_k = 2, .width = 64, .inner = 80}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = 1, .top_k = 65, .width = 64, .inner = 64}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
