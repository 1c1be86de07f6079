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

// to = norm * from / sqrt(mean(from^2) + eps) * silu(z) of one head of one row, by one warp: lane l
// has columns 4 l .. 4 l + 3. `to` may be `from`. dv a multiple of 4, at most 128.
__device__ inline void NormHead(const DeltaShape& shape, const GatedNorm& gated, int head,
                                int64_t row, const float* from, float* to) {
  const int dv = shape.value_dim, share = shape.value_heads / shape.key_heads;
  const int64_t group = 2 * shape.key_dim + 2 * share * dv;
  const float* const z = gated.qkvz + (row * shape.key_heads + head / share) * group +
                         2 * shape.key_dim + (share + head % share) * dv;
  const int column = static_cast<int>(threadIdx.x) % kWarp * 4;
  float o[4], squares = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    o[c] = column < dv ? from[column + c] : 0.f;
    squares += o[c] * o[c];
  }
  const float scale = 1 / sqrtf(WarpSum(squares) / static_cast<float>(dv) + gated.eps);
  const bool is_there = column < dv;
  if (is_there) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      o[c] = gated.norm[column + c] * (o[c] * scale) * SiluOf(z[column + c]);
      to[column + c] = o[c];
    }
  }
  if (gated.rounded.words != nullptr) {
    StoreRounded({o[0], o[1], o[2], o[3]}, is_there, gated.rounded, row, shape.value_heads * dv,
                 head * dv + (is_there ? column : 0));
  }
}

}  // namespace hearth::worker
