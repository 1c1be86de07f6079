#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/step_kernels.h"

namespace hearth::worker {
namespace {

constexpr int kThreads = 256;

__device__ float4 FourBf16(uint2 bits) {
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
          __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u)};
}

template <int kBits>
__global__ void EmbedKernel(int width, const void* table, const int32_t* ids, float* x) {
  JoinChain();
  const int n = width / 4;
  const int64_t from = int64_t{ids[blockIdx.x]} * n;
  auto* to = reinterpret_cast<float4*>(x) + int64_t{blockIdx.x} * n;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    if constexpr (kBits == 16) {
      to[i] = FourBf16(static_cast<const uint2*>(table)[from + i]);
    } else {
      to[i] = static_cast<const float4*>(table)[from + i];
    }
  }
}

__device__ float SiluTimes(float gate, float up) { return gate / (1 + expf(-gate)) * up; }

__global__ void SiluMulKernel(int64_t n, float4* gate, const float4* up) {
  JoinChain();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const float4 g = gate[i], u = up[i];
  gate[i] = {SiluTimes(g.x, u.x), SiluTimes(g.y, u.y), SiluTimes(g.z, u.z), SiluTimes(g.w, u.w)};
}

constexpr int kWarp = 32, kGroup = 8;

// A warp an output.
__global__ void F32LinearKernel(const float* __restrict__ weights, int64_t out, int64_t in,
                                int n_rows, const float* x, float* y) {
  JoinChain();
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= out) return;  // of the whole warp
  float sums[kGroup] = {};
  for (int64_t i = lane; i < in; i += kWarp) {
    const float w = weights[row * in + i];
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      if (t < n_rows) sums[t] = fmaf(w, x[t * in + i], sums[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kGroup; ++t) {
    for (int d = kWarp / 2; d > 0; d /= 2) sums[t] += __shfl_xor_sync(0xffffffffu, sums[t], d);
    if (lane == 0 && t < n_rows) y[t * out + row] = sums[t];
  }
}

}  // namespace

cudaError_t F32LinearCuda(const float* weights, int64_t out, int64_t in, int n_rows, const float* x,
                          float* y, cudaStream_t stream) {
  if (out < 0 || in < 1 || n_rows < 0) return cudaErrorInvalidValue;
  if (out == 0) return cudaSuccess;
  constexpr int64_t kOutputs = kThreads / kWarp;
  const auto blocks = static_cast<unsigned>((out + kOutputs - 1) / kOutputs);
  for (int first = 0; first < n_rows; first += kGroup) {
    const int n = n_rows - first < kGroup ? n_rows - first : kGroup;
    const cudaError_t error =
        Launch(F32LinearKernel, {.grid = dim3(blocks), .threads = kThreads, .stream = stream},
               weights, out, in, n, x + first * in, y + first * out);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t EmbedCuda(int n_rows, int width, int bits, const void* table, const int32_t* ids,
                      float* x, cudaStream_t stream) {
  if (n_rows < 0 || width % 4 != 0 || (bits != 16 && bits != 32)) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  const auto kernel = bits == 16 ? EmbedKernel<16> : EmbedKernel<32>;
  return Launch(
      kernel, {.grid = dim3(static_cast<unsigned>(n_rows)), .threads = kThreads, .stream = stream},
      width, table, ids, x);
}

cudaError_t SiluMulCuda(int64_t n, float* gate, const float* up, cudaStream_t stream) {
  if (n < 0 || n % 4 != 0) return cudaErrorInvalidValue;
  if (n == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((n / 4 + kThreads - 1) / kThreads);
  return Launch(SiluMulKernel, {.grid = dim3(blocks), .threads = kThreads, .stream = stream}, n / 4,
                reinterpret_cast<float4*>(gate), reinterpret_cast<const float4*>(up));
}

}  // namespace hearth::worker
