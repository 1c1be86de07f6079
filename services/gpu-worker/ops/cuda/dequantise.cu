#include <cuda_bf16.h>

#include <algorithm>

#include "services/gpu-worker/ops/cuda/dequantise.h"
#include "services/gpu-worker/ops/cuda/tile_device.h"

namespace hearth::worker {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
// Blocks of 32 KiB of shared memory that fit a processor of any card since sm_80.
constexpr int kResidentBlocks = 3;

__device__ inline uint32_t Bf16Bits(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// A warp takes one tile at a time, a lane four rows of eight columns.
template <int kBits>
__global__ __launch_bounds__(kThreads) void ToBf16(const __grid_constant__ DeviceMatrix weights,
                                                   uint16_t* __restrict__ to) {
  __shared__ float2 table[kBits == 4 ? kTableBytes / 8 : 1];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (kBits == 4) {
    FillTable(weights.levels, table);
    __syncthreads();  // orders the table before its readers
  }
  const int64_t n_tiles = weights.in / kColumnsATile;
  const int64_t n_all = (weights.out + kRowsATile - 1) / kRowsATile * n_tiles;
  const auto* data = static_cast<const uint8_t*>(weights.data);
  for (int64_t tile = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; tile < n_all;
       tile += int64_t{gridDim.x} * kWarps) {
    const RawTile<kBits> raw = LoadTile<kBits>(data, weights.scales, tile, lane);
    const int64_t first_row = tile / n_tiles * kRowsATile + lane % 4 * kRowsALane;
    const int64_t column = tile % n_tiles * kColumnsATile + lane / 4 * 4;
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&raw.scales.x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&raw.scales.y));
    const float scales[kRowsALane] = {low.x, low.y, high.x, high.y};
#pragma unroll
    for (int i = 0; i < kRowsALane; ++i) {
      if (first_row + i >= weights.out) break;
      float w[8];
      DecodeRow<kBits>(raw, i, table, lane, w);
      const float scale = scales[i] * weights.factor;
      for (float& value : w) value *= scale;
      uint16_t* row = to + (first_row + i) * weights.in + column;
      *reinterpret_cast<uint2*>(row) = make_uint2(Bf16Bits(w[0], w[1]), Bf16Bits(w[2], w[3]));
      *reinterpret_cast<uint2*>(row + 32) = make_uint2(Bf16Bits(w[4], w[5]), Bf16Bits(w[6], w[7]));
    }
  }
}

template <int kBits>
cudaError_t Launch(const DeviceMatrix& weights, uint16_t* to, cudaStream_t stream) {
  if (weights.out < 0 || weights.in <= 0 || weights.in % kColumnsATile != 0) {
    return cudaErrorInvalidValue;
  }
  if (weights.out == 0) return cudaSuccess;
  int device = 0, n_processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int64_t n_tiles =
      (weights.out + kRowsATile - 1) / kRowsATile * (weights.in / kColumnsATile);
  const auto n_blocks = static_cast<unsigned>(
      std::min<int64_t>((n_tiles + kWarps - 1) / kWarps, int64_t{n_processors} * kResidentBlocks));
  ToBf16<kBits><<<n_blocks, kThreads, 0, stream>>>(weights, to);
  return cudaGetLastError();
}

}  // namespace

cudaError_t Tiled4ToBf16Cuda(const DeviceMatrix& weights, uint16_t* to, cudaStream_t stream) {
  return Launch<4>(weights, to, stream);
}

cudaError_t Tiled8ToBf16Cuda(const DeviceMatrix& weights, uint16_t* to, cudaStream_t stream) {
  return Launch<8>(weights, to, stream);
}

}  // namespace hearth::worker
