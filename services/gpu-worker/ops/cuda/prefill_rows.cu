#include <cuda_bf16.h>

#include "services/gpu-worker/ops/cuda/prefill_rows.h"
#include "services/gpu-worker/ops/cuda/prefill_tile.cuh"

namespace hearth::worker {
namespace {

constexpr int kThreads = 256;

unsigned BlocksFor(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

// A thread makes 8 neighbours of the result, which `value` gives by row offset and column.
template <typename Value>
__device__ void MakeHalves(int64_t n_pieces, uint16_t* half, Value value) {
  const int64_t piece = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (piece >= n_pieces) return;
  const int64_t block = piece / 8 * kTileWidth;
  const int s = static_cast<int>(piece % 8) / 2, first_u = static_cast<int>(piece % 2) * 4;
  uint32_t packed[4];
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const int64_t at = block + 4 * (first_u + u) + s;
    packed[u] = PackHalves(ToHalf(value(at)), ToHalf(value(at + 32)));
  }
  reinterpret_cast<uint4*>(half)[piece] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

__global__ void __launch_bounds__(kThreads)
    ToHalfKernel(int64_t n_pieces, const float* __restrict__ x, uint16_t* __restrict__ half) {
  MakeHalves(n_pieces, half, [x](int64_t at) { return x[at]; });
}

__global__ void __launch_bounds__(kThreads)
    SiluHalfKernel(int64_t n_pieces, const float* __restrict__ gate, const float* __restrict__ up,
                   uint16_t* __restrict__ half) {
  MakeHalves(n_pieces, half, [=](int64_t at) { return SiluOf(gate[at]) * up[at]; });
}

__device__ inline uint32_t PackBf16(__nv_bfloat16 low, __nv_bfloat16 high) {
  const __nv_bfloat162 pair(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// A thread splits 4 neighbours.
__global__ void __launch_bounds__(kThreads)
    ToSplitKernel(int64_t n_pieces, const float* __restrict__ x, uint16_t* __restrict__ high,
                  uint16_t* __restrict__ low) {
  const int64_t piece = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (piece >= n_pieces) return;
  const float4 four = reinterpret_cast<const float4*>(x)[piece];
  const float values[4] = {four.x, four.y, four.z, four.w};
  __nv_bfloat16 first[4], rest[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    first[i] = __float2bfloat16_rn(values[i]);
    rest[i] = __float2bfloat16_rn(values[i] - __bfloat162float(first[i]));
  }
  reinterpret_cast<uint2*>(high)[piece] =
      make_uint2(PackBf16(first[0], first[1]), PackBf16(first[2], first[3]));
  if (low == nullptr) return;
  reinterpret_cast<uint2*>(low)[piece] =
      make_uint2(PackBf16(rest[0], rest[1]), PackBf16(rest[2], rest[3]));
}

bool IsValid(int n_rows, int width, int unit) {
  return n_rows >= 0 && width > 0 && width % unit == 0;
}

}  // namespace

cudaError_t ToHalfRowsCuda(int n_rows, int width, const float* x, uint16_t* half,
                           cudaStream_t stream) {
  if (!IsValid(n_rows, width, kTileWidth)) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  const int64_t n_pieces = int64_t{n_rows} * width / 8;
  ToHalfKernel<<<BlocksFor(n_pieces), kThreads, 0, stream>>>(n_pieces, x, half);
  return cudaGetLastError();
}

cudaError_t ToSplitRowsCuda(int n_rows, int width, const float* x, uint16_t* high, uint16_t* low,
                            cudaStream_t stream) {
  if (!IsValid(n_rows, width, 8)) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  const int64_t n_pieces = int64_t{n_rows} * width / 4;
  ToSplitKernel<<<BlocksFor(n_pieces), kThreads, 0, stream>>>(n_pieces, x, high, low);
  return cudaGetLastError();
}

cudaError_t SiluHalfRowsCuda(int n_rows, int width, const float* gate, const float* up,
                             uint16_t* half, cudaStream_t stream) {
  if (!IsValid(n_rows, width, kTileWidth)) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  const int64_t n_pieces = int64_t{n_rows} * width / 8;
  SiluHalfKernel<<<BlocksFor(n_pieces), kThreads, 0, stream>>>(n_pieces, gate, up, half);
  return cudaGetLastError();
}

}  // namespace hearth::worker
