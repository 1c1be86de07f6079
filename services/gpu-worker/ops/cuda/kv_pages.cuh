// Addresses in KV pages and the conversion of their values, for the attention kernels.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "services/gpu-worker/ops/cuda/attention_cuda.h"

namespace hearth::worker {

// Offset of position p of sequence s in both pools, for key/value head g.
__device__ inline int64_t KvOffset(const DeviceKv& kv, const AttentionShape& shape,
                                   int64_t sequence, int64_t position, int kv_head) {
  const int64_t page = kv.table[sequence * kv.max_pages + position / kv.page_tokens];
  return ((page * kv.page_tokens + position % kv.page_tokens) * shape.n_kv_heads + kv_head) *
         shape.head_dim;
}

__device__ inline void StoreKvValue(float value, float* to) { *to = value; }
__device__ inline void StoreKvValue(float value, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(value);
}

__device__ inline void StoreKvValue(float value, int8_t* to) {
  *to = static_cast<int8_t>(__float2int_rn(value));
}

// kDims consecutive values as they lie in a page, loaded as wide as they are aligned.
template <typename T, int kDims>
struct KvVector {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * kDims;
  static_assert(kBytes <= 2 || kBytes % 4 == 0);
  static constexpr int kAlign = kBytes < 16 ? kBytes : 16;
  struct alignas(kAlign) Values {
    T at[kDims];
  };
  Values values;

  __device__ void Load(const void* from) { values = *static_cast<const Values*>(from); }
  __device__ void ToFloats(float (&to)[kDims]) const {
    if constexpr (std::is_same_v<T, int8_t> && kDims % 4 == 0) {
      // The float 2^23 + 128 + q, less 2^23 + 128: no conversion.
#pragma unroll
      for (int i = 0; i < kDims; i += 4) {
        uint32_t word;
        memcpy(&word, &values.at[i], 4);
        word ^= 0x80808080u;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          to[i + j] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + j)) - 8388736.f;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kDims; ++i) to[i] = static_cast<float>(values.at[i]);
    }
  }
};

}  // namespace hearth::worker
