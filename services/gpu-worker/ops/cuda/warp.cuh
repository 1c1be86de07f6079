// Sums and maxima over a warp or a block, in an order that depends on the number of threads alone.
#pragma once

#include <cuda_runtime.h>

namespace hearth::worker {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Every lane gets the sum.
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// Every thread gets the sum. For one use a kernel: `sums` [warps of the block] is not free again
// before the block's next barrier.
__device__ inline float BlockSum(float value, float* sums) {
  value = WarpSum(value);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();  // every warp's sum is written
  const int n_warps = static_cast<int>(blockDim.x) / kWarp;
  float total = 0;
  for (int w = 0; w < n_warps; ++w) total += sums[w];
  return total;
}

__device__ inline float SigmoidOf(float x) { return 1 / (1 + expf(-x)); }
__device__ inline float SiluOf(float x) { return x / (1 + expf(-x)); }
__device__ inline float SoftplusOf(float x) { return x > 20 ? x : log1pf(expf(x)); }

}  // namespace hearth::worker
