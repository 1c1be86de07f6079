// What the tests of attention share: pages on host and device, and both sides' results on them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/testing/compare.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/exact_ops.h"

namespace hearth::worker {

using Floats = std::vector<float>;

inline constexpr float kEps = 1e-6f;

inline float RoundedToBf16(float value) {  // to nearest even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline std::vector<uint16_t> Bf16Bits(const Floats& values) {
  std::vector<uint16_t> bits;
  for (const float value : values) {
    const float rounded = RoundedToBf16(value);
    uint32_t all;
    std::memcpy(&all, &rounded, 4);
    bits.push_back(static_cast<uint16_t>(all >> 16));
  }
  return bits;
}

inline Floats FromBf16Bits(const std::vector<uint16_t>& bits) {
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
      EXPECT_TRUE(hearth::testing::AllClose(mine, want, {.abs = 1e-5, .rel = 1e-4}))
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

}  // namespace hearth::worker
