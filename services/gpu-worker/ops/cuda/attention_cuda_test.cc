#include "services/gpu-worker/ops/cuda/attention_cuda.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/cuda/attention_testing.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using ::hearth::testing::Tolerance;

TEST_F(AttentionCudaTest, DecodeAgreesAtEveryLengthAroundPagesAndStretches) {
  const std::vector<int64_t> positions = {0,  3,  4,  14,  15,  16,  30,   31,   32,
                                          62, 63, 64, 510, 511, 512, 2048, 4095, 4096};
  uint32_t seed = 1;
  for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
    ExpectAgreement({4, 2, 64}, positions, type, seed += 10);
    ExpectAgreement({16, 2, 256}, positions, type, seed += 10);
  }
}

TEST_F(AttentionCudaTest, DecodeAgreesForEveryHeadWidthAndShare) {
  uint32_t seed = 1000;
  for (const AttentionShape& shape :
       {AttentionShape{2, 2, 32}, AttentionShape{6, 2, 32}, AttentionShape{32, 2, 64},
        AttentionShape{9, 1, 128}, AttentionShape{16, 16, 128}, AttentionShape{32, 4, 256}}) {
    for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
      ExpectAgreement(shape, {100, 0, 129}, type, seed += 10);
    }
  }
}

TEST_F(AttentionCudaTest, LongContextsHaveLongerStretches) {
  EXPECT_EQ(StretchOf(1), 32);
  EXPECT_EQ(StretchOf(4096), 32);
  EXPECT_EQ(StretchOf(4097), 64);
  EXPECT_EQ(StretchOf(262144), 2048);
  for (const KvType type : {KvType::kF32, KvType::kInt8}) {
    ExpectAgreement({2, 1, 32}, {8191, 8192, 17000}, type, 5);
  }
}

TEST_F(AttentionCudaTest, NeighboursAndTheGridDoNotChangeABit) {
  const AttentionShape shape{4, 2, 64};
  constexpr int64_t kPosition = 700;
  Pool pool(shape, 3, 64, 16, KvType::kF32, 3);
  const Floats q = RandomFloats(3 * 4 * 64, 4), gates = RandomFloats(3 * 4 * 128, 5);
  const Floats alone =
      Run(shape, {1, 1}, {kPosition}, kPosition + 1, Floats(q.begin(), q.begin() + 256),
          Floats(gates.begin(), gates.begin() + 512), pool);
  const Floats among = Run(shape, {3, 1}, {kPosition, -1, 1000}, 1024, q, gates, pool);
  EXPECT_EQ(Floats(among.begin(), among.begin() + 256), alone);
  for (size_t i = 0; i < among.size(); ++i) {
    EXPECT_EQ(IsPoison(among[i]), i / 256 == 1)
        << "the idle row, and only it, is left poisoned: " << i;
  }
}

TEST_F(AttentionCudaTest, RowsOfOneSequenceShareItsPages) {
  const AttentionShape shape{4, 2, 64};
  constexpr int kRows = 5;
  Pool pool(shape, 1, 8, 16, KvType::kF32, 13);
  const Floats q = RandomFloats(kRows * 256, 14), gates = RandomFloats(kRows * 512, 15);
  const Floats got = Run(shape, {1, kRows}, {60, 61, 62, 63, 64}, 128, q, gates, pool);
  for (int t = 0; t < kRows; ++t) {
    const Floats alone =
        Run(shape, {1, 1}, {60 + t}, 128, Floats(q.begin() + t * 256, q.begin() + (t + 1) * 256),
            Floats(gates.begin() + t * 512, gates.begin() + (t + 1) * 512), pool);
    EXPECT_EQ(Floats(got.begin() + t * 256, got.begin() + (t + 1) * 256), alone) << t;
  }
}

TEST_F(AttentionCudaTest, RotatesAndStoresAsTheReferenceDoes) {
  uint32_t seed = 50;
  for (const AttentionShape& shape : {AttentionShape{2, 1, 32}, AttentionShape{4, 2, 64},
                                      AttentionShape{5, 5, 48}, AttentionShape{16, 2, 256}}) {
    for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
      const int d = shape.head_dim, half = d / 8;
      const SequenceRows rows{2, 3};
      const std::vector<int64_t> positions = {14, 15, 16, 300, 301, 302};
      Pool pool(shape, 2, 20, 16, type, seed += 10);
      RotaryTable rotary;
      rotary.scale = 1.25;
      for (int j = 0; j < half; ++j) {
        rotary.inverse_frequencies.push_back(std::pow(1e7, -j / static_cast<double>(half)));
      }
      const Floats query_gate = RandomFloats(int64_t{6} * shape.n_heads * 2 * d, seed + 1);
      Floats k = RandomFloats(int64_t{6} * shape.n_kv_heads * d, seed + 2);
      const Floats v = RandomFloats(static_cast<int64_t>(k.size()), seed + 3);
      const Floats q_norm = RandomFloats(d, seed + 4), k_norm = RandomFloats(d, seed + 5);

      const auto device_frequencies = ToDevice(rotary.inverse_frequencies);
      const auto device_positions = ToDevice(positions);
      const auto device_qg = ToDevice(query_gate), device_k = ToDevice(k), device_v = ToDevice(v),
                 device_qn = ToDevice(q_norm), device_kn = ToDevice(k_norm);
      auto device_q = Poisoned<float>(int64_t{6} * shape.n_heads * d);
      HEARTH_EXPECT_CUDA(RotateAndStoreCuda(shape, rows, {device_qn.data(), device_kn.data(), kEps},
                                            {device_frequencies.data(), half, rotary.scale},
                                            device_positions.data(), device_qg.data(),
                                            device_k.data(), device_v.data(), pool.device(),
                                            device_q.data(), nullptr));

      Floats q(static_cast<size_t>(device_q.size())), gate(q.size());
      exact_.PrepareQueryKey(shape, 6, positions.data(), rotary, query_gate.data(), q_norm.data(),
                             k_norm.data(), kEps, q.data(), gate.data(), k.data());
      for (int s = 0; s < 2; ++s) {
        const int64_t at = int64_t{s} * 3 * shape.n_kv_heads * d;
        exact_.StoreKv(shape, 3, positions[static_cast<size_t>(3 * s)], k.data() + at,
                       v.data() + at, pool.host(s));
      }
      EXPECT_TRUE(AllClose(ToHost(device_q), q, {.abs = 1e-5, .rel = 1e-5})) << d;
      if (type == KvType::kInt8) {
        ExpectRounded(pool.device_keys(), pool.host_keys(), d);
        ExpectRounded(pool.device_values(), pool.host_values(), d);
        continue;
      }
      // Where float32 differs in the last place, bf16 may round the other way.
      const Tolerance keys = type == KvType::kF32 ? Tolerance{.abs = 1e-5, .rel = 1e-5}
                                                  : Tolerance{.abs = 1e-5, .rel = 1.0 / 128};
      EXPECT_TRUE(AllClose(pool.device_keys(), pool.host_keys(), keys)) << d;
      EXPECT_EQ(pool.device_values(), pool.host_values()) << d;
    }
  }
}

TEST_F(AttentionCudaTest, StoresAsIfRowsStoodOnePositionEarlier) {
  uint32_t seed = 500;
  for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
    const AttentionShape shape{4, 2, 64};
    const int64_t row = int64_t{shape.n_kv_heads} * shape.head_dim;
    const SequenceRows rows{2, 3};
    // The second sequence's first row has none before it.
    const auto positions = ToDevice(std::vector<int64_t>{16, 17, 18, 0, 1, 2}),
               earlier = ToDevice(std::vector<int64_t>{15, 16, 17, -1, 0, 1});
    Pool pool(shape, 2, 20, 16, type, ++seed), same(shape, 2, 20, 16, type, seed);
    const auto k = ToDevice(RandomFloats(6 * row, 600)), v = ToDevice(RandomFloats(6 * row, 601)),
               norm = ToDevice(RandomFloats(shape.head_dim, 602)),
               query_gate = ToDevice(RandomFloats(6 * 4 * 2 * 64, 603));
    const auto frequencies = ToDevice(std::vector<double>{1, 0.25, 0.01});
    auto q = Poisoned<float>(6 * 4 * 64);
    const DeviceRotary rotary{frequencies.data(), 3, 1.5};
    const Floats untouched = pool.device_keys();
    HEARTH_EXPECT_CUDA(StoreOneBeforeCuda(shape, rows, {nullptr, norm.data(), kEps}, rotary,
                                          positions.data(), k.data(), v.data(), pool.device(),
                                          nullptr));
    HEARTH_EXPECT_CUDA(RotateAndStoreCuda(shape, rows, {norm.data(), norm.data(), kEps}, rotary,
                                          earlier.data(), query_gate.data(), k.data(), v.data(),
                                          same.device(), q.data(), nullptr));
    EXPECT_EQ(pool.device_keys(), same.device_keys());
    EXPECT_EQ(pool.device_values(), same.device_values());
    EXPECT_NE(pool.device_keys(), untouched);
  }
}

TEST_F(AttentionCudaTest, FarPositionsTurnAsFarAsTheReference) {
  const AttentionShape shape{1, 1, 64};
  const std::vector<int64_t> positions = {262143, 1000003};
  const RotaryTable rotary{.inverse_frequencies = {1, 0.5, 0.001, 1e-6}, .scale = 1};
  const Floats query_gate = RandomFloats(2 * 128, 1), norm(64, 0.f);
  Floats k = RandomFloats(2 * 64, 2), q(128), gate(128);
  constexpr int kMaxPages = 1000003 / 16 + 1;
  const auto table = ToDevice(std::vector<int32_t>(2 * kMaxPages));  // one page, again and again
  auto keys = Poisoned<float>(16 * 64), values = Poisoned<float>(16 * 64);
  const auto frequencies = ToDevice(rotary.inverse_frequencies);
  const auto device_positions = ToDevice(positions);
  const auto device_qg = ToDevice(query_gate), device_k = ToDevice(k), device_norm = ToDevice(norm);
  auto device_q = Poisoned<float>(128);
  HEARTH_EXPECT_CUDA(RotateAndStoreCuda(
      shape, {2, 1}, {device_norm.data(), device_norm.data(), kEps}, {frequencies.data(), 4, 1},
      device_positions.data(), device_qg.data(), device_k.data(), device_k.data(),
      {.type = KvType::kF32,
       .keys = keys.data(),
       .values = values.data(),
       .table = table.data(),
       .max_pages = kMaxPages,
       .page_tokens = 16},
      device_q.data(), nullptr));
  exact_.PrepareQueryKey(shape, 2, positions.data(), rotary, query_gate.data(), norm.data(),
                         norm.data(), kEps, q.data(), gate.data(), k.data());
  EXPECT_TRUE(AllClose(ToHost(device_q), q, {.abs = 3e-6, .rel = 1e-5}));
}

TEST_F(AttentionCudaTest, RefusesShapesItHasNoKernelFor) {
  const auto attend = [](const AttentionShape& shape) {
    return AttentionCuda(shape, {1, 1}, nullptr, 64, nullptr, nullptr, {.page_tokens = 16}, nullptr,
                         nullptr, nullptr);
  };
  EXPECT_EQ(attend({4, 2, 96}), cudaErrorInvalidValue);
  EXPECT_EQ(attend({5, 2, 64}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
