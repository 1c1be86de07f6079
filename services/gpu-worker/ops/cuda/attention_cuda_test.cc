#include "services/gpu-worker/ops/cuda/attention_cuda.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/testing/compare.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/rounded_testing.h"
#include "services/gpu-worker/ops/exact_ops.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using ::hearth::testing::Tolerance;
using Floats = std::vector<float>;

constexpr float kEps = 1e-6f;

float RoundedToBf16(float value) {  // to nearest even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::vector<uint16_t> Bf16Bits(const Floats& values) {
  std::vector<uint16_t> bits;
  for (const float value : values) {
    const float rounded = RoundedToBf16(value);
    uint32_t all;
    std::memcpy(&all, &rounded, 4);
    bits.push_back(static_cast<uint16_t>(all >> 16));
  }
  return bits;
}

Floats FromBf16Bits(const std::vector<uint16_t>& bits) {
  Floats values;
  for (const uint16_t one : bits) {
    const uint32_t all = static_cast<uint32_t>(one) << 16;
    values.emplace_back();
    std::memcpy(&values.back(), &all, 4);
  }
  return values;
}

// Rows of d values as int8 with one scale each.
struct Int8Rows {
  Int8Rows(const Floats& values, int d) {
    for (size_t first = 0; first < values.size(); first += static_cast<size_t>(d)) {
      float largest = 0;
      for (int i = 0; i < d; ++i) {
        largest = std::max(largest, std::abs(values[first + static_cast<size_t>(i)]));
      }
      scales.push_back(largest / 127);
      for (int i = 0; i < d; ++i) {
        const float whole =
            std::nearbyint(values[first + static_cast<size_t>(i)] * (127 / largest));
        q.push_back(static_cast<int8_t>(whole));
      }
    }
  }
  static Floats Values(const std::vector<int8_t>& q, const Floats& scales) {
    const size_t d = q.size() / scales.size();
    Floats values;
    for (size_t i = 0; i < q.size(); ++i) values.push_back(q[i] * scales[i / d]);
    return values;
  }
  std::vector<int8_t> q;
  Floats scales;
};

// One layer's pools of pages, host and device, with every page of a table somewhere else in them.
class Pool {
 public:
  Pool(const AttentionShape& shape, int n_sequences, int max_pages, int page_tokens, KvType type,
       uint32_t seed)
      : max_pages_(max_pages), page_tokens_(page_tokens), type_(type) {
    page_size_ = int64_t{page_tokens} * shape.n_kv_heads * shape.head_dim;
    const int n_pages = n_sequences * max_pages;
    for (int i = 0; i < n_pages; ++i) table_.push_back(n_pages - 1 - i);
    keys_ = RandomFloats(n_pages * page_size_, seed);
    values_ = RandomFloats(n_pages * page_size_, seed + 1);
    if (type == KvType::kInt8) {
      const Int8Rows keys(keys_, shape.head_dim), values(values_, shape.head_dim);
      keys_ = Int8Rows::Values(keys.q, keys.scales);
      values_ = Int8Rows::Values(values.q, values.scales);
      tiny_keys_ = ToDevice(keys.q), tiny_values_ = ToDevice(values.q);
      key_scales_ = ToDevice(keys.scales), value_scales_ = ToDevice(values.scales);
    } else if (type == KvType::kBf16) {
      std::ranges::transform(keys_, keys_.begin(), RoundedToBf16);
      std::ranges::transform(values_, values_.begin(), RoundedToBf16);
      short_keys_ = ToDevice(Bf16Bits(keys_));
      short_values_ = ToDevice(Bf16Bits(values_));
    } else {
      long_keys_ = ToDevice(keys_);
      long_values_ = ToDevice(values_);
    }
    device_table_ = ToDevice(table_);
  }

  DeviceKv device() {
    DeviceKv kv = {.type = type_,
                   .keys = long_keys_.data(),
                   .values = long_values_.data(),
                   .table = device_table_.data(),
                   .max_pages = max_pages_,
                   .page_tokens = page_tokens_};
    if (type_ == KvType::kBf16) kv.keys = short_keys_.data(), kv.values = short_values_.data();
    if (type_ == KvType::kInt8) {
      kv.keys = tiny_keys_.data(), kv.values = tiny_values_.data();
      kv.key_scales = key_scales_.data(), kv.value_scales = value_scales_.data();
    }
    return kv;
  }
  // The host's pages of a sequence; valid until the next call.
  KvPages host(int sequence) {
    key_pages_.clear();
    value_pages_.clear();
    for (int i = 0; i < max_pages_; ++i) {
      const int64_t at = table_[static_cast<size_t>(sequence * max_pages_ + i)] * page_size_;
      key_pages_.push_back(keys_.data() + at);
      value_pages_.push_back(values_.data() + at);
    }
    return {key_pages_, value_pages_, page_tokens_};
  }
  Floats host_keys() const { return Rounded(keys_); }
  Floats host_values() const { return Rounded(values_); }
  Floats device_keys() const {
    if (type_ == KvType::kInt8) return Int8Rows::Values(ToHost(tiny_keys_), ToHost(key_scales_));
    return type_ == KvType::kF32 ? ToHost(long_keys_) : FromBf16Bits(ToHost(short_keys_));
  }
  Floats device_values() const {
    if (type_ == KvType::kInt8)
      return Int8Rows::Values(ToHost(tiny_values_), ToHost(value_scales_));
    return type_ == KvType::kF32 ? ToHost(long_values_) : FromBf16Bits(ToHost(short_values_));
  }

 private:
  Floats Rounded(Floats values) const {
    if (type_ == KvType::kBf16) std::ranges::transform(values, values.begin(), RoundedToBf16);
    return values;
  }

  int max_pages_, page_tokens_;
  KvType type_;
  int64_t page_size_ = 0;
  std::vector<int32_t> table_;
  Floats keys_, values_;
  DeviceBuffer<float> long_keys_, long_values_;
  DeviceBuffer<uint16_t> short_keys_, short_values_;
  DeviceBuffer<int8_t> tiny_keys_, tiny_values_;
  DeviceBuffer<float> key_scales_, value_scales_;
  DeviceBuffer<int32_t> device_table_;
  std::vector<float*> key_pages_, value_pages_;
};

class AttentionCudaTest : public CudaTest {
 protected:
  // Rows at `positions`, rows.n_rows of each sequence; idle ones are -1. Outputs of the device.
  Floats Run(const AttentionShape& shape, const SequenceRows& rows,
             const std::vector<int64_t>& positions, int64_t max_positions, const Floats& q,
             const Floats& query_gate, Pool& pool) {
    const auto device_positions = ToDevice(positions);
    const auto device_q = ToDevice(q), device_gate = ToDevice(query_gate);
    auto scratch = Poisoned<float>(AttentionScratchFloats(shape, rows.total(), max_positions));
    auto out = Poisoned<float>(static_cast<int64_t>(q.size()));
    HEARTH_EXPECT_CUDA(AttentionCuda(shape, rows, device_positions.data(), max_positions,
                                     device_q.data(), device_gate.data(), pool.device(),
                                     scratch.data(), out.data(), nullptr));
    return ToHost(out);
  }

  void ExpectAgreement(const AttentionShape& shape, const std::vector<int64_t>& positions,
                       KvType type, uint32_t seed) {
    const int n = static_cast<int>(positions.size()), d = shape.head_dim;
    const int64_t max_positions = *std::ranges::max_element(positions) + 1;
    Pool pool(shape, n, static_cast<int>(max_positions / 16 + 1), 16, type, seed);
    const int64_t row = int64_t{shape.n_heads} * d;
    const Floats q = RandomFloats(n * row, seed + 2, 2),
                 gates = RandomFloats(n * row * 2, seed + 3);
    const Floats got = Run(shape, {n, 1}, positions, max_positions, q, gates, pool);
    for (int s = 0; s < n; ++s) {
      Floats gate, want(static_cast<size_t>(row));
      for (int64_t i = 0; i < row; ++i) {
        gate.push_back(gates[static_cast<size_t>(s * row * 2 + i / d * 2 * d + d + i % d)]);
      }
      exact_.Attention(shape, 1, positions[static_cast<size_t>(s)], q.data() + s * row, gate.data(),
                       pool.host(s), want.data());
      const Floats mine(got.begin() + s * row, got.begin() + (s + 1) * row);
      EXPECT_TRUE(AllClose(mine, want, {.abs = 1e-5, .rel = 1e-4}))
          << shape.n_heads << " heads of " << d << ", position "
          << positions[static_cast<size_t>(s)];
    }
  }

  // Half a step of each row's scale apart, and what float32 makes of that.
  void ExpectRounded(const Floats& got, const Floats& want, int d) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t first = 0; first < want.size(); first += static_cast<size_t>(d)) {
      float largest = 0;
      for (size_t i = first; i < first + static_cast<size_t>(d); ++i) {
        largest = std::max(largest, std::abs(want[i]));
      }
      for (size_t i = first; i < first + static_cast<size_t>(d); ++i) {
        ASSERT_NEAR(got[i], want[i], 0.502 * largest / 127) << i << " of rows of " << d;
      }
    }
  }

  Parallel parallel_{2};
  ExactOps exact_{&parallel_};
};

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
