// Addresses in KV pages and the conversion of their values, for the attention kernels.
#pragma once

#include <cuda_bf16.h>

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

// kDims consecutive values as they lie in a page, loaded as wide as they are aligned.
template <typename T, int kDims>
struct KvVector {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * kDims;
  static_assert(kBytes == 2 || kBytes % 4 == 0);
  static constexpr int kAlign = kBytes < 16 ? kBytes : 16;
  struct alignas(kAlign) Values {
    T at[kDims];
  };
  Values values;

  __device__ void Load(const T* from) { values = *reinterpret_cast<const Values*>(from); }
  __device__ float operator[](int i) const { return static_cast<float>(values.at[i]); }
};

}  // namespace hearth::worker
