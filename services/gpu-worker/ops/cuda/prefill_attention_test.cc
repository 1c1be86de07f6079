#include "services/gpu-worker/ops/cuda/prefill_attention.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "common/testing/compare.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/prefill_testing.h"
#include "services/gpu-worker/ops/exact_ops.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using Floats = std::vector<float>;

// A sequence's bf16 pages, host and device, in falling order in their pools.
struct Pages {
  Pages(const AttentionShape& shape, int64_t n_positions, int page_tokens, uint32_t seed)
      : page_tokens_(page_tokens) {
    const auto n_pages = static_cast<int>((n_positions + page_tokens - 1) / page_tokens);
    const int64_t page_size = int64_t{page_tokens} * shape.n_kv_heads * shape.head_dim;
    for (int i = 0; i < n_pages; ++i) table_.push_back(n_pages - 1 - i);
    keys_ = RandomFloats(n_pages * page_size, seed);
    values_ = RandomFloats(n_pages * page_size, seed + 1);
    device_keys_ = ToDevice(Rounded(keys_));
    device_values_ = ToDevice(Rounded(values_));
    device_table_ = ToDevice(table_);
    for (const int32_t page : table_) {
      key_pages_.push_back(keys_.data() + page * page_size);
      value_pages_.push_back(values_.data() + page * page_size);
    }
  }
  Pages(const Pages&) = delete;

  DeviceKv device() {
    return {.type = KvType::kBf16,
            .keys = device_keys_.data(),
            .values = device_values_.data(),
            .table = device_table_.data(),
            .max_pages = static_cast<int>(table_.size()),
            .page_tokens = page_tokens_};
  }
  KvPages host() const { return {key_pages_, value_pages_, page_tokens_}; }

 private:
  static std::vector<uint16_t> Rounded(Floats& values) {
    std::vector<uint16_t> bits;
    for (float& value : values) {
      bits.push_back(F32ToBF16(value));
      value = BF16ToF32(bits.back());
    }
    return bits;
  }

  int page_tokens_;
  std::vector<int32_t> table_;
  Floats keys_, values_;
  DeviceBuffer<uint16_t> device_keys_, device_values_;
  DeviceBuffer<int32_t> device_table_;
  std::vector<float*> key_pages_, value_pages_;
};

class PrefillAttentionTest : public CudaTest {
 protected:
  // Rows at `first` on; a poisoned value behind them.
  static Floats Run(const AttentionShape& shape, int n_rows, int64_t first, const float* q,
                    const float* query_gate, Pages& pages) {
    const int64_t n = int64_t{n_rows} * shape.n_heads * shape.head_dim;
    std::vector<int64_t> positions(static_cast<size_t>(n_rows), first);
    if (first >= 0) std::iota(positions.begin(), positions.end(), first);
    const auto device_positions = ToDevice(positions);
    const auto device_q = ToDevice(Floats(q, q + n)),
               device_gate = ToDevice(Floats(query_gate, query_gate + 2 * n));
    auto out = Poisoned<float>(n + 1);
    HEARTH_EXPECT_CUDA(PrefillAttentionCuda(shape, n_rows, device_positions.data(), device_q.data(),
                                            device_gate.data(), pages.device(), out.data(),
                                            nullptr));
    return ToHost(out);
  }

  void ExpectAgreement(const AttentionShape& shape, int n_rows, int64_t first, int page_tokens,
                       uint32_t seed) {
    const int d = shape.head_dim;
    const int64_t n = int64_t{n_rows} * shape.n_heads * d;
    Pages pages(shape, first + n_rows, page_tokens, seed);
    Floats q = RandomFloats(n, seed + 2, 2);
    const Floats gates = RandomFloats(2 * n, seed + 3);
    Floats got = Run(shape, n_rows, first, q.data(), gates.data(), pages);
    EXPECT_TRUE(IsPoison(got.back())) << "wrote past the end";
    got.pop_back();
    // What the kernel multiplies: q in units of log 2 and of sqrt(d), as bf16.
    const float scale = 1.4426950408889634f / std::sqrt(static_cast<float>(d));
    for (float& value : q) value = RoundedToBf16(value * scale) / scale;
    Floats gate, want(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      gate.push_back(gates[static_cast<size_t>(i / d * 2 * d + d + i % d)]);
    }
    exact_.Attention(shape, n_rows, first, q.data(), gate.data(), pages.host(), want.data());
    // A position's weight is rounded by at most 2^-9; values are about 1.
    EXPECT_TRUE(AllClose(got, want, {.abs = 3e-3, .rel = 3e-3}))
        << shape.n_heads << " heads of " << d << ", " << n_rows << " rows from " << first;
  }

  Parallel parallel_{2};
  ExactOps exact_{&parallel_};
};

TEST_F(PrefillAttentionTest, AgreesAroundPagesAndTiles) {
  uint32_t seed = 1;
  for (const AttentionShape& shape : {AttentionShape{4, 2, 64}, AttentionShape{16, 2, 256}}) {
    for (const int n_rows : {1, 9, 31, 64, 65, 130}) {
      for (const int64_t first : {0, 15, 31, 33, 63, 500}) {
        ExpectAgreement(shape, n_rows, first, 16, seed += 10);
      }
    }
  }
}

TEST_F(PrefillAttentionTest, AgreesForEveryHeadWidthAndShare) {
  uint32_t seed = 5000;
  for (const AttentionShape& shape :
       {AttentionShape{2, 2, 32}, AttentionShape{6, 2, 32}, AttentionShape{9, 1, 128},
        AttentionShape{16, 16, 128}, AttentionShape{32, 4, 256}, AttentionShape{70, 1, 64}}) {
    for (const int page_tokens : {7, 16, 100}) {
      ExpectAgreement(shape, 40, 90, page_tokens, seed += 10);
    }
  }
}

TEST_F(PrefillAttentionTest, NeighboursDoNotChangeABit) {
  const AttentionShape shape{8, 2, 256};
  constexpr int kRows = 70, kFirst = 30;
  constexpr int64_t kRow = 8 * 256;
  Pages pages(shape, kFirst + kRows, 16, 3);
  const Floats q = RandomFloats(kRows * kRow, 4), gates = RandomFloats(kRows * kRow * 2, 5);
  const Floats all = Run(shape, kRows, kFirst, q.data(), gates.data(), pages);
  for (const int t : {0, 1, 16, 33, 69}) {
    Floats one = Run(shape, 1, kFirst + t, q.data() + t * kRow, gates.data() + t * kRow * 2, pages);
    one.pop_back();
    EXPECT_EQ(one, Floats(all.begin() + t * kRow, all.begin() + (t + 1) * kRow)) << t;
  }
}

TEST_F(PrefillAttentionTest, AnIdlePlaceIsLeftAlone) {
  const AttentionShape shape{4, 2, 64};
  Pages pages(shape, 16, 16, 3);
  const Floats q = RandomFloats(3 * 256, 4), gates = RandomFloats(3 * 512, 5);
  for (const float value : Run(shape, 3, -1, q.data(), gates.data(), pages)) {
    EXPECT_TRUE(IsPoison(value));
  }
}

TEST_F(PrefillAttentionTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  const auto attend = [](const AttentionShape& shape, int n_rows, KvType type) {
    return PrefillAttentionCuda(shape, n_rows, nullptr, nullptr, nullptr,
                                {.type = type, .page_tokens = 16}, nullptr, nullptr);
  };
  EXPECT_EQ(attend({4, 2, 64}, 0, KvType::kBf16), cudaSuccess);
  EXPECT_EQ(attend({4, 2, 64}, 9, KvType::kF32), cudaErrorInvalidValue);
  EXPECT_EQ(attend({4, 2, 96}, 9, KvType::kBf16), cudaErrorInvalidValue);
  EXPECT_EQ(attend({5, 2, 64}, 9, KvType::kBf16), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
