// The arithmetic of a row's norm, for the kernels that have one: spelled out, so that they give the
// same bits. 512 threads, each with the four values 4 t .. 4 t + 3 of every 2048. Only for .cu
// files.
#pragma once

#include <cuda_runtime.h>

namespace hearth::worker {

inline constexpr int kNormThreads = 512;

__device__ inline float4 Added(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ inline float AddSquares(const float4& v, float sum) {
  return fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, sum))));
}
__device__ inline float NormScale(float squares, int width, float eps) {
  return __fdiv_rn(1, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(width)), eps)));
}
__device__ inline float4 Normed(const float4& v, float scale, const float4& weight) {
  return {v.x * scale * (1 + weight.x), v.y * scale * (1 + weight.y), v.z * scale * (1 + weight.z),
          v.w * scale * (1 + weight.w)};
}

}  // namespace hearth::worker
