// The gated norm behind the delta rule, for the kernels that end with it.
#pragma once

#include "services/gpu-worker/ops/cuda/round_vector.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"
#include "services/gpu-worker/ops/shapes.h"

namespace hearth::worker {

struct GatedNorm {
  const float* qkvz = nullptr;  // [rows, Hk, q dk | k dk | v | z]: z is read
  const float* norm = nullptr;  // [dv]
  float eps = 0;
  RoundedRows rounded = {};  // [rows, Hv dv], if wanted; dv is a multiple of 64 then
};

// Lane l of a warp has columns 4 l .. 4 l + 3 of a head; zeros beyond dv, a multiple of 4 and at
// most 128.
struct HeadVector {
  float of[4] = {};
};
__device__ inline HeadVector LoadHead(const float* from, int dv) {
  HeadVector v;
  const int column = static_cast<int>(threadIdx.x) % kWarp * 4;
#pragma unroll
  for (int c = 0; c < 4; ++c) v.of[c] = column < dv ? from[column + c] : 0.f;
  return v;
}
__device__ inline void StoreHead(const HeadVector& v, float (&to)[4 * kWarp]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) to[threadIdx.x % kWarp * 4 + c] = v.of[c];
}
__device__ inline HeadVector LoadZ(const DeltaShape& shape, const float* qkvz, int head,
                                   int64_t row) {
  const int dv = shape.value_dim, share = shape.value_heads / shape.key_heads;
  const int64_t group = 2 * shape.key_dim + 2 * share * dv;
  return LoadHead(qkvz + (row * shape.key_heads + head / share) * group + 2 * shape.key_dim +
                      (share + head % share) * dv,
                  dv);
}

// to = norm * o / sqrt(mean(o^2) + eps) * silu(z) of one head of one row, by one warp. Spelled out
// as UpdateState is.
__device__ inline void NormHead(const DeltaShape& shape, const GatedNorm& gated, int head,
                                int64_t row, HeadVector o, const HeadVector& z,
                                const HeadVector& norm, float* to) {
  const int dv = shape.value_dim;
  const int column = static_cast<int>(threadIdx.x) % kWarp * 4;
  float squares = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) squares = fmaf(o.of[c], o.of[c], squares);
  const float scale = 1 / sqrtf(WarpSum(squares) / static_cast<float>(dv) + gated.eps);
  const bool is_there = column < dv;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    o.of[c] = norm.of[c] * (o.of[c] * scale) * SiluOf(z.of[c]);
    if (is_there) to[column + c] = o.of[c];
  }
  if (gated.rounded.words != nullptr) {
    StoreRounded({o.of[0], o.of[1], o.of[2], o.of[3]}, is_there, gated.rounded, row,
                 shape.value_heads * dv, head * dv + (is_there ? column : 0));
  }
}

}  // namespace hearth::worker
