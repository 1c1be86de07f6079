// A decode step's attention as one call, what it leaves for the next linear layer, and what int8
// pages lose.
#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/attention_testing.h"
#include "services/gpu-worker/ops/cuda/rounded_testing.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using ::hearth::testing::Tolerance;

// One row of each of some sequences, the fourth of them idle: what a step's attention leaves.
struct StepResult {
  std::vector<uint32_t> out;  // bits: nothing is written of an idle row
  Floats keys, values;
  bool operator==(const StepResult&) const = default;
};

StepResult AttendStep(const AttentionShape& shape, KvType type, uint32_t seed, bool at_once) {
  const std::vector<int64_t> all = {0, 15, 16, -1, 300, 3000, 47};
  const auto n = static_cast<int>(all.size());
  const int d = shape.head_dim, half = d / 8;
  Pool pool(shape, n, 200, 16, type, seed);
  std::vector<double> turns;
  turns.reserve(static_cast<size_t>(half));
  for (int j = 0; j < half; ++j) turns.push_back(std::pow(1e7, -j / static_cast<double>(half)));
  const auto frequencies = ToDevice(turns);
  const auto positions = ToDevice(all);
  const auto query_gate = ToDevice(RandomFloats(int64_t{n} * shape.n_heads * 2 * d, seed + 1)),
             k = ToDevice(RandomFloats(int64_t{n} * shape.n_kv_heads * d, seed + 2)),
             v = ToDevice(RandomFloats(int64_t{n} * shape.n_kv_heads * d, seed + 3)),
             q_norm = ToDevice(RandomFloats(d, seed + 4)),
             k_norm = ToDevice(RandomFloats(d, seed + 5));
  auto q = Poisoned<float>(int64_t{n} * shape.n_heads * d);
  auto out = Poisoned<float>(q.size());
  auto scratch = Poisoned<float>(AttentionScratchFloats(shape, n, 3200));
  const RotaryNorms norms{q_norm.data(), k_norm.data(), kEps};
  const DeviceRotary rotary{frequencies.data(), half, 1.25};
  if (at_once) {
    HEARTH_EXPECT_CUDA(RotateAndAttendCuda(shape, n, {norms, rotary, k.data(), v.data()},
                                           positions.data(), 3200, query_gate.data(), pool.device(),
                                           scratch.data(), out.data(), {}, nullptr));
  } else {
    HEARTH_EXPECT_CUDA(RotateAndStoreCuda(shape, {n, 1}, norms, rotary, positions.data(),
                                          query_gate.data(), k.data(), v.data(), pool.device(),
                                          q.data(), nullptr));
    HEARTH_EXPECT_CUDA(AttentionCuda(shape, {n, 1}, positions.data(), 3200, q.data(),
                                     query_gate.data(), pool.device(), scratch.data(), out.data(),
                                     nullptr));
  }
  const Floats values = ToHost(out);
  std::vector<uint32_t> bits(values.size());
  std::memcpy(bits.data(), values.data(), bits.size() * 4);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(IsPoison(values[i]), i / static_cast<size_t>(shape.n_heads * d) == 3) << i;
  }
  return {bits, pool.device_keys(), pool.device_values()};
}

TEST_F(AttentionCudaTest, AStepInOneLaunchLessHasTheSameBits) {
  uint32_t seed = 900;
  for (const AttentionShape& shape : {AttentionShape{2, 1, 32}, AttentionShape{4, 2, 64},
                                      AttentionShape{8, 1, 128}, AttentionShape{16, 2, 256}}) {
    for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
      ASSERT_TRUE(CanRotateAndAttend(shape));
      seed += 10;
      EXPECT_TRUE(AttendStep(shape, type, seed, true) == AttendStep(shape, type, seed, false))
          << shape.head_dim << ", type " << static_cast<int>(type);
    }
  }
  EXPECT_FALSE(CanRotateAndAttend({18, 2, 64}));
}

TEST_F(AttentionCudaTest, RoundedOutputsAreThoseThatTheLinearLayerWouldRound) {
  const AttentionShape shape{4, 2, 128};
  constexpr int kRows = 3, kWidth = 4 * 128;
  Pool pool(shape, kRows, 20, 16, KvType::kBf16, 23);
  const auto positions = ToDevice(std::vector<int64_t>{5, 100, 290});
  const auto q = ToDevice(RandomFloats(kRows * kWidth, 24)),
             gates = ToDevice(RandomFloats(kRows * kWidth * 2, 25));
  auto scratch = Poisoned<float>(AttentionScratchFloats(shape, kRows, 320));
  auto out = Poisoned<float>(kRows * kWidth);
  RoundedBuffer rounded(kRows, kWidth);
  HEARTH_EXPECT_CUDA(AttentionCuda(shape, {kRows, 1}, positions.data(), 320, q.data(), gates.data(),
                                   pool.device(), scratch.data(), out.data(), rounded.rows(),
                                   nullptr));
  ExpectSameProducts(kRows, kWidth, out.data(), rounded.rows());
}

// To e4m3, of which 448 is the largest, to nearest even.
float RoundedToFp8(float value) {
  int exponent;
  std::frexp(value, &exponent);
  const float step = std::ldexp(1.f, std::max(exponent - 4, -9));
  return std::clamp(std::nearbyint(value / step) * step, -448.f, 448.f);
}

// Error of attention's output, of its size, for keys and values that `rounded` makes of them.
template <typename Round>
double ErrorOf(Round rounded, const Floats& keys, const Floats& values, const Floats& q, int d,
               ExactOps& exact) {
  const AttentionShape shape{8, 1, d};
  const int n = static_cast<int>(keys.size()) / d;
  const Floats gate(q.size(), 1.f);
  const auto attend = [&](Floats k, Floats v) {
    std::vector<float*> key_pages = {k.data()}, value_pages = {v.data()};
    Floats out(q.size());
    exact.Attention(shape, 1, n - 1, q.data(), gate.data(), {key_pages, value_pages, n},
                    out.data());
    return out;
  };
  const Floats want = attend(keys, values), got = attend(rounded(keys), rounded(values));
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]), size += want[i] * want[i];
  }
  return std::sqrt(error / size);
}

TEST(KvTypes, Int8LosesLessThanFp8) {
  constexpr int kDim = 256, kPositions = 500;
  Parallel parallel{2};
  ExactOps exact(&parallel);
  const auto int8 = [](const Floats& values) {
    const Int8Rows rows(values, kDim);
    return Int8Rows::Values(rows.q, rows.scales);
  };
  const auto fp8 = [](Floats values) {
    std::ranges::transform(values, values.begin(), RoundedToFp8);
    return values;
  };
  for (const float outlier : {1.f, 3.f, 10.f}) {  // in a few dimensions of all keys, as models have
    Floats keys = RandomFloats(kPositions * kDim, 1);
    for (size_t i = 0; i < keys.size(); ++i) keys[i] *= i % kDim % 64 == 7 ? outlier : 1;
    const Floats values = RandomFloats(kPositions * kDim, 2), q = RandomFloats(8 * kDim, 3, 1.5f);
    const double with_int8 = ErrorOf(int8, keys, values, q, kDim, exact);
    const double with_fp8 = ErrorOf(fp8, keys, values, q, kDim, exact);
    RecordProperty("outlier_" + std::to_string(static_cast<int>(outlier)),
                   std::to_string(with_int8) + " int8, " + std::to_string(with_fp8) + " fp8");
    EXPECT_LT(with_int8, outlier < 10 ? 0.02 : 0.08) << outlier;
    EXPECT_LT(with_int8, with_fp8) << outlier;
  }
}

}  // namespace
}  // namespace hearth::worker
