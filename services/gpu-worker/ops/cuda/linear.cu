#include <algorithm>

#include "services/gpu-worker/ops/cuda/linear.h"
#include "services/gpu-worker/ops/cuda/tile_device.h"

namespace hearth::worker {
namespace {

constexpr int kWarps = 16, kThreads = kWarps * kWarp;
constexpr int kMaxRows = 8;
// 16-byte loads that a lane has under way.
constexpr int kDepth = 4;
// Blocks a processor: one row fits in 64 registers a thread, more do not.
constexpr int ResidentBlocks(int n_rows) { return n_rows == 1 ? 2 : 1; }

struct GemvArgs {
  DeviceMatrix weights;
  int n_rows;
  int split;  // warps that share a strip or row: a power of two, at most kWarps
  const float* x;
  float* y;
};

// Adds up what the `split` warps of each unit (of kWidth outputs) left in `partial`, in the order
// of the warps. `first` is the block's first unit.
template <int kRows, int kWidth>
__device__ void WriteSums(const GemvArgs& args, int64_t first, float factor,
                          const float (&partial)[kWarps][kRows][kWidth]) {
  const int per_block = kWarps / args.split;
  for (int i = static_cast<int>(threadIdx.x); i < per_block * kRows * kWidth; i += kThreads) {
    const int unit = i / (kRows * kWidth), t = i / kWidth % kRows, r = i % kWidth;
    const int64_t row = (first + unit) * kWidth + r;
    if (row >= args.weights.out || t >= args.n_rows) continue;
    float sum = 0;
    for (int w = 0; w < args.split; ++w) sum += partial[unit * args.split + w][t][r];
    args.y[t * args.weights.out + row] = sum * factor;
  }
}

// A block takes kWarps / split strips of 16 outputs at a time; the warps of a strip take its tiles
// in turn, a lane four rows of each.
template <int kBits, int kRows>
__global__ __launch_bounds__(kThreads, ResidentBlocks(kRows)) void TiledGemv(
    const __grid_constant__ GemvArgs args) {
  static_assert(kRows >= 1 && kRows <= kMaxRows);
  extern __shared__ float4 shared[];
  auto* table = reinterpret_cast<float2*>(shared);
  float* x = reinterpret_cast<float*>(shared) + (kBits == 4 ? kTableBytes / 4 : 0);
  __shared__ float partial[kWarps][kRows][kRowsATile];

  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int in = static_cast<int>(args.weights.in), n_tiles = in / kColumnsATile;
  const int64_t n_strips = (args.weights.out + kRowsATile - 1) / kRowsATile;
  const int per_block = kWarps / args.split, first_tile = warp % args.split;
  const auto* data = static_cast<const uint8_t*>(args.weights.data);
  constexpr int kTiles = kDepth / (kBits / 4);  // under way a lane
  RawTile<kBits> raw[kTiles];
  const auto load = [&](int64_t strip, int first) {
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
      const int tile = first + d * args.split;
      if (strip < n_strips && tile < n_tiles) {
        raw[d] = LoadTile<kBits>(data, args.weights.scales, strip * n_tiles + tile, lane);
      }
    }
  };

  // Stage 1: the first weights are under way while the table and x go to shared memory.
  int64_t group = blockIdx.x;
  load(group * per_block + warp / args.split, first_tile);
  if constexpr (kBits == 4) FillTable(args.weights.levels, table);
  StageRows(args.x, args.n_rows, kRows, in, x);
  __syncthreads();  // orders table and x before their readers

  for (; group * per_block < n_strips; group += gridDim.x) {
    // Stage 2: the warp's tiles.
    const int64_t strip = group * per_block + warp / args.split;
    float acc[kRows][kRowsALane] = {};
    for (int first = first_tile; first < n_tiles; first += kTiles * args.split) {
      if (first != first_tile || group != blockIdx.x) load(strip, first);
      if (strip >= n_strips) break;
#pragma unroll
      for (int d = 0; d < kTiles; ++d) {
        const int tile = first + d * args.split;
        if (tile >= n_tiles) break;
        AddTile<kBits, kRows>(raw[d], table, x + tile * kColumnsATile, in, lane, 1.f, acc);
      }
    }
    // Stage 3: sums over lanes, then over warps.
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      const float sum = SumOfRow(acc[t], lane);
      if ((lane & 4) == 0) partial[warp][t][RowOfLane(lane)] = sum;
    }
    __syncthreads();  // orders `partial` before its readers
    WriteSums<kRows, kRowsATile>(args, group * per_block, args.weights.factor, partial);
    __syncthreads();  // orders its readers before the next strips' sums
  }
}

__device__ inline float2 Bf16Pair(uint32_t bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// A block takes kWarps / split outputs at a time; the warps of one take its columns in turns of
// 256, a lane eight neighbours.
template <int kRows>
__global__ __launch_bounds__(kThreads, ResidentBlocks(kRows)) void Bf16Gemv(
    const __grid_constant__ GemvArgs args) {
  static_assert(kRows >= 1 && kRows <= kMaxRows);
  constexpr int kTurn = kWarp * 8;
  extern __shared__ float4 shared[];
  float* x = reinterpret_cast<float*>(shared);
  __shared__ float partial[kWarps][kRows][1];

  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int in = static_cast<int>(args.weights.in), per_block = kWarps / args.split;
  const int begin = warp % args.split * kTurn + lane * 8;
  const auto* data = static_cast<const uint16_t*>(args.weights.data);
  uint4 raw[kDepth];
  const auto load = [&](int64_t row, int first) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int column = first + d * args.split * kTurn;
      if (row < args.weights.out && column < in) raw[d] = LoadOnce(data + row * in + column);
    }
  };

  // Stage 1: the first weights are under way while x goes to shared memory.
  int64_t group = blockIdx.x;
  load(group * per_block + warp / args.split, begin);
  StageRows(args.x, args.n_rows, kRows, in, x);
  __syncthreads();  // orders x before its readers

  for (; group * per_block < args.weights.out; group += gridDim.x) {
    // Stage 2: the lane's columns.
    const int64_t row = group * per_block + warp / args.split;
    float acc[kRows] = {};
    for (int first = begin; first < in; first += kDepth * args.split * kTurn) {
      if (first != begin || group != blockIdx.x) load(row, first);
      if (row >= args.weights.out) break;
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const int column = first + d * args.split * kTurn;
        if (column >= in) break;
        const float2 w[4] = {Bf16Pair(raw[d].x), Bf16Pair(raw[d].y), Bf16Pair(raw[d].z),
                             Bf16Pair(raw[d].w)};
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
          const float4 a = *reinterpret_cast<const float4*>(x + t * in + column);
          const float4 b = *reinterpret_cast<const float4*>(x + t * in + column + 4);
          acc[t] = fmaf(w[0].x, a.x, acc[t]);
          acc[t] = fmaf(w[0].y, a.y, acc[t]);
          acc[t] = fmaf(w[1].x, a.z, acc[t]);
          acc[t] = fmaf(w[1].y, a.w, acc[t]);
          acc[t] = fmaf(w[2].x, b.x, acc[t]);
          acc[t] = fmaf(w[2].y, b.y, acc[t]);
          acc[t] = fmaf(w[3].x, b.z, acc[t]);
          acc[t] = fmaf(w[3].y, b.w, acc[t]);
        }
      }
    }
    // Stage 3: sums over lanes, then over warps.
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      for (int d = kWarp / 2; d > 0; d /= 2) acc[t] += __shfl_xor_sync(0xffffffffu, acc[t], d);
      if (lane == 0) partial[warp][t][0] = acc[t];
    }
    __syncthreads();  // orders `partial` before its readers
    WriteSums<kRows, 1>(args, group * per_block, 1.f, partial);
    __syncthreads();  // orders its readers before the next rows' sums
  }
}

struct Card {
  int n_processors = 0;
  int shared_bytes = 0;  // that a block may ask for
};

cudaError_t ThisCard(Card* card) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&card->n_processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(&card->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                device);
}

// Warps a unit: each has a full depth of loads twice over, or as few as keep every processor's
// warps busy.
int SplitFor(int64_t n_units, int64_t loads_a_unit, const Card& card) {
  int split = 1;
  const auto more = [&] {
    return loads_a_unit / split > 2 * kDepth ||
           (n_units * split < int64_t{card.n_processors} * kWarps && loads_a_unit / split > 1);
  };
  while (split < kWarps && more()) split *= 2;
  return split;
}

using Kernel = void (*)(GemvArgs);

struct Family {
  Kernel one, two, four, eight;
  int width;           // outputs a unit
  int columns_a_load;  // of a warp
  int table_bytes;     // of shared memory
};

cudaError_t Launch(const Family& family, GemvArgs args, const Card& card, cudaStream_t stream) {
  const int n = args.n_rows;
  const int kernel_rows = n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : 8;
  const Kernel kernel = n <= 1   ? family.one
                        : n <= 2 ? family.two
                        : n <= 4 ? family.four
                                 : family.eight;
  const int64_t n_units = (args.weights.out + family.width - 1) / family.width;
  const int per_block = kWarps / args.split;
  const int64_t n_groups = (n_units + per_block - 1) / per_block;
  const int resident = ResidentBlocks(kernel_rows);
  const auto n_blocks =
      static_cast<unsigned>(std::min<int64_t>(n_groups, int64_t{card.n_processors} * resident));
  const auto bytes = static_cast<size_t>(family.table_bytes) +
                     static_cast<size_t>(kernel_rows) * static_cast<size_t>(args.weights.in) * 4;
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  kernel<<<n_blocks, kThreads, bytes, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t Linear(const Family& family, const DeviceMatrix& weights, int column_unit, int n_rows,
                   const float* x, float* y, cudaStream_t stream) {
  if (n_rows < 0 || weights.out < 0 || weights.in <= 0 || weights.in % column_unit != 0) {
    return cudaErrorInvalidValue;
  }
  if (n_rows == 0 || weights.out == 0) return cudaSuccess;
  Card card;
  const cudaError_t error = ThisCard(&card);
  if (error != cudaSuccess) return error;
  // What the kernels have beside their dynamic memory: the sums of kWarps warps.
  const int64_t room = card.shared_bytes - family.table_bytes - kWarps * kMaxRows * kRowsATile * 4;
  int group = kMaxRows;
  while (group > 1 && group * weights.in * 4 > room) group /= 2;
  if (weights.in * 4 > room) return cudaErrorInvalidValue;
  const int64_t n_units = (weights.out + family.width - 1) / family.width;
  const int64_t loads = (weights.in + family.columns_a_load - 1) / family.columns_a_load;
  const int split = SplitFor(n_units, loads, card);
  for (int first = 0; first < n_rows; first += group) {
    const cudaError_t launched = Launch(family,
                                        {.weights = weights,
                                         .n_rows = std::min(group, n_rows - first),
                                         .split = split,
                                         .x = x + first * weights.in,
                                         .y = y + first * weights.out},
                                        card, stream);
    if (launched != cudaSuccess) return launched;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t Tiled4LinearCuda(const DeviceMatrix& weights, int n_rows, const float* x, float* y,
                             cudaStream_t stream) {
  static constexpr Family kFamily = {TiledGemv<4, 1>, TiledGemv<4, 2>, TiledGemv<4, 4>,
                                     TiledGemv<4, 8>, kRowsATile,      kColumnsATile,
                                     kTableBytes};
  return Linear(kFamily, weights, kColumnsATile, n_rows, x, y, stream);
}

cudaError_t Tiled8LinearCuda(const DeviceMatrix& weights, int n_rows, const float* x, float* y,
                             cudaStream_t stream) {
  static constexpr Family kFamily = {TiledGemv<8, 1>,
                                     TiledGemv<8, 2>,
                                     TiledGemv<8, 4>,
                                     TiledGemv<8, 8>,
                                     kRowsATile,
                                     kColumnsATile,
                                     0};
  return Linear(kFamily, weights, kColumnsATile, n_rows, x, y, stream);
}

cudaError_t Bf16LinearCuda(const DeviceMatrix& weights, int n_rows, const float* x, float* y,
                           cudaStream_t stream) {
  static constexpr Family kFamily = {
      Bf16Gemv<1>, Bf16Gemv<2>, Bf16Gemv<4>, Bf16Gemv<8>, 1, kWarp * 8, 0};
  return Linear(kFamily, weights, 8, n_rows, x, y, stream);
}

}  // namespace hearth::worker
