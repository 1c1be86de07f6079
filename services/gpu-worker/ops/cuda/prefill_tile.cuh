// The inner loop of the prefill's products: strips of 16 outputs, a few a warp, times rows of
// activations that the block's warps share. Weights come tile by tile (common/tensor/tiled.h) into
// the warp's own part of a stage and are decoded on their way to the tensor core; activations lie
// in the stage as they are multiplied. A strip is the product's 16 x K side, activations its K x 8
// one, so that few rows waste little.
//
// Row m of the 16 x 16 pieces is row 2 m of the strip for m < 8, row 2 (m - 8) + 1 beyond: a lane's
// two rows are neighbours.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "common/tensor/linear.h"
#include "services/gpu-worker/ops/cuda/linear.h"
#include "services/gpu-worker/ops/cuda/tensor_core.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {

inline constexpr int kStripRows = 16, kTileWidth = 64;
// f16 pairs of levels for each byte, one copy a lane: no two lanes ever ask the same bank.
inline constexpr int kPairTableBytes = 256 * kWarp * 4;

// f16 that holds a value beyond its range as its largest; NaN stays.
__device__ inline __half ToHalf(float value) {
  return __float2half_rn(fabsf(value) > 65504.f ? copysignf(65504.f, value) : value);
}
__device__ inline uint32_t PackHalves(__half low, __half high) {
  const __half2 pair = __halves2half2(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Where column c of 64 stands in tile order.
__device__ inline int PlaceInTile(int column) {
  return 16 * (column % 4) + 2 * (column % 32 / 4) + column / 32;
}

// All threads of the block together; a barrier must follow.
__device__ inline void FillPairTable(const Levels& levels, uint32_t* table) {
  for (int i = static_cast<int>(threadIdx.x); i < 256 * kWarp; i += static_cast<int>(blockDim.x)) {
    const int byte = i / kWarp;
    table[i] = PackHalves(__float2half_rn(levels.values[byte & 15]),
                          __float2half_rn(levels.values[byte >> 4]));
  }
}

// A strip's tiles in device memory; null: all zeros.
struct Strip {
  const uint8_t* data = nullptr;
  const uint16_t* scales = nullptr;
  int64_t stride = 0;   // kBF16: values between two rows
  int64_t columns = 0;  // kBF16: values of a row
  int rows = 0;         // kBF16: rows that exist
};

// What a warp holds of one tile while it multiplies it. Load reads the stage; Decode gives the
// strip's side of k step s (16 columns in tile order).
template <WeightKind kKind>
struct TileWeights;

// Swaps 16-byte pieces of a tile, so that the four words that lanes 4 g .. 4 g + 3 read together
// lie in different banks.
__device__ inline int SwappedPiece(int piece) { return piece ^ (piece >> 2 & 2); }

template <int kPieces>
__device__ inline void CopyTile(uint32_t to, const Strip& strip, int tile, int lane) {
  const bool is_there = strip.data != nullptr;
  const uint8_t* from = strip.data + int64_t{tile} * kPieces * 16;
#pragma unroll
  for (int i = lane; i < kPieces; i += kWarp) {
    CopyAsync16(to + static_cast<uint32_t>(SwappedPiece(i)) * 16,
                is_there ? from + i * 16 : nullptr, is_there);
  }
  if (lane < 4) {
    CopyAsync8(to + kPieces * 16 + static_cast<uint32_t>(lane) * 8,
               is_there ? strip.scales + int64_t{tile} * kStripRows + lane * 4 : nullptr, is_there);
  }
}

// Words of columns 4 t .. 4 t + 3 (t = lane % 4 + 4 part) of rows 2 g and 2 g + 1.
__device__ inline uint2 LoadWords(const uint8_t* tile, int part, int lane) {
  const int t = lane % 4 + 4 * part, g = lane / 4;
  return *reinterpret_cast<const uint2*>(tile + SwappedPiece(4 * t + g / 2) * 16 + g % 2 * 8);
}

__device__ inline uint32_t Scaled(uint32_t pair, __half2 scale) {
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&pair), scale);
  return *reinterpret_cast<const uint32_t*>(&product);
}

template <>
struct TileWeights<WeightKind::kTiled4> {
  static constexpr int kBytes = 512 + 32;
  static constexpr float kFactor = 1;  // of what the sums still lack beside the matrix's own
  uint2 words[2];
  __half2 scales[2];

  static __device__ void Copy(uint32_t to, const Strip& strip, int tile, int lane) {
    CopyTile<32>(to, strip, tile, lane);
  }
  __device__ void Load(const uint8_t* tile, int lane) {
    words[0] = LoadWords(tile, 0, lane);
    words[1] = LoadWords(tile, 1, lane);
    const __half2 both = *reinterpret_cast<const __half2*>(tile + 512 + lane / 4 * 4);
    scales[0] = __low2half2(both), scales[1] = __high2half2(both);
  }
  // `table` is the lane's copy.
  __device__ void Decode(int s, const uint8_t*, const uint8_t* table, int, uint32_t (&a)[4]) const {
    const auto look = [&](uint32_t word) {
      const uint32_t at = (s == 0 ? word << 7 : word >> (8 * s - 7)) & 0x7f80u;
      return *reinterpret_cast<const uint32_t*>(table + at);
    };
    a[0] = Scaled(look(words[0].x), scales[0]);
    a[1] = Scaled(look(words[0].y), scales[1]);
    a[2] = Scaled(look(words[1].x), scales[0]);
    a[3] = Scaled(look(words[1].y), scales[1]);
  }
};

template <>
struct TileWeights<WeightKind::kTiled8> {
  static constexpr int kBytes = 1024 + 32;
  static constexpr float kFactor = 256;  // scales / 256: integers times scales are within f16
  uint2 words[4];
  __half2 scales[2];

  static __device__ void Copy(uint32_t to, const Strip& strip, int tile, int lane) {
    CopyTile<64>(to, strip, tile, lane);
  }
  __device__ void Load(const uint8_t* tile, int lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = LoadWords(tile, i, lane);
    const __half2 both = __hmul2(*reinterpret_cast<const __half2*>(tile + 1024 + lane / 4 * 4),
                                 __float2half2_rn(1 / kFactor));
    scales[0] = __low2half2(both), scales[1] = __high2half2(both);
  }
  __device__ void Decode(int s, const uint8_t*, const uint8_t*, int, uint32_t (&a)[4]) const {
    const auto pair = [&](uint32_t low, uint32_t high) {
      // 1024 + byte in each half, less 1024 + 128.
      const uint32_t bytes = __byte_perm(low, high, static_cast<uint32_t>(s | (4 + s) << 8));
      const uint32_t biased = (bytes & 0x00ff00ffu) | 0x64006400u;
      const __half2 value =
          __hsub2(*reinterpret_cast<const __half2*>(&biased), __float2half2_rn(1152.f));
      return *reinterpret_cast<const uint32_t*>(&value);
    };
    a[0] = Scaled(pair(words[0].x, words[2].x), scales[0]);
    a[1] = Scaled(pair(words[0].y, words[2].y), scales[1]);
    a[2] = Scaled(pair(words[1].x, words[3].x), scales[0]);
    a[3] = Scaled(pair(words[1].y, words[3].y), scales[1]);
  }
};

// Rows of 64 values (128 bytes), pieces of 16 bytes swapped by the row: eight rows' same piece lies
// in all banks.
__device__ inline uint32_t PlaceOfPiece(int row, int piece) {
  return static_cast<uint32_t>(row * 128 + ((piece ^ (row & 7)) << 4));
}

template <>
struct TileWeights<WeightKind::kBF16> {
  static constexpr int kBytes = kStripRows * kTileWidth * 2;
  static constexpr float kFactor = 1;

  static __device__ void Copy(uint32_t to, const Strip& strip, int tile, int lane) {
    const auto* data = reinterpret_cast<const uint16_t*>(strip.data);
#pragma unroll
    for (int i = lane; i < kStripRows * 8; i += kWarp) {
      const int row = i / 8, piece = i % 8;
      const int64_t column = int64_t{tile} * kTileWidth + piece * 8;
      const bool is_there = data != nullptr && row < strip.rows && column < strip.columns;
      CopyAsync16(to + PlaceOfPiece(row, piece),
                  is_there ? data + row * strip.stride + column : nullptr, is_there);
    }
  }
  __device__ void Load(const uint8_t*, int) {}
  __device__ void Decode(int s, const uint8_t* tile, const uint8_t*, int lane,
                         uint32_t (&a)[4]) const {
    const int row = 2 * (lane % 8) + lane / 8 % 2;
    LoadMatrices(a, SharedAddress(tile) + PlaceOfPiece(row, 2 * s + lane / 16));
  }
};

// How a block divides a product: kWarps warps, kStrips strips a warp, kColumns rows of activations
// (the product's columns), kStages stages under way.
template <WeightKind kWeights, int kWarpsABlock, int kStripsAWarp, int kRowsABlock, int kStageCount,
          int kPartsOfX = 1>
struct ProductShape {
  static constexpr WeightKind kKind = kWeights;
  static constexpr int kWarps = kWarpsABlock, kStrips = kStripsAWarp, kRows = kRowsABlock,
                       kStages = kStageCount, kParts = kPartsOfX;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kRowBytes = kRows * kTileWidth * 2;  // of one part of a stage's activations
  static constexpr int kStripBytes = TileWeights<kKind>::kBytes;
  static constexpr int kStageBytes = kParts * kRowBytes + kWarps * kStrips * kStripBytes;
  static constexpr int kTableBytes = kKind == WeightKind::kTiled4 ? kPairTableBytes : 0;
  static constexpr int kSharedBytes = kTableBytes + kStages * kStageBytes;
  // 16-byte pieces of a stage's activations that a thread copies.
  static constexpr int kPieces = (kRows * 8 + kThreads - 1) / kThreads;
  static_assert(kRows % 16 == 0 && kStages >= 2 && (kParts == 1 || kKind == WeightKind::kBF16));
};

// The rows of activations whose pieces a thread copies: row (thread + i threads) / 8; null: zeros.
template <typename Shape>
struct RowPlaces {
  const uint16_t* rows[Shape::kPieces] = {};
  int64_t low_offset = 0;  // from a row's high part to its low one, in values
  int64_t columns = 0;
};

// acc[strip][j] += strip x rows 8 j .. 8 j + 7, over n_tiles tiles. `stages` holds kStages *
// kStageBytes, `table` the block's table. All warps of the block together; the stages are free
// again after the next barrier.
template <typename Shape>
__device__ void MultiplyStrips(const Strip (&strips)[Shape::kStrips], const RowPlaces<Shape>& rows,
                               int n_tiles, uint8_t* stages, const uint8_t* table,
                               float (&acc)[Shape::kStrips][Shape::kRows / 8][4]) {
  using Weights = TileWeights<Shape::kKind>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const uint32_t to = SharedAddress(stages);
  const int my_strips =
      Shape::kParts * Shape::kRowBytes + warp * Shape::kStrips * Shape::kStripBytes;
  table += lane * 4;

  const auto load = [&](int tile) {
    if (tile < n_tiles) {
      const uint32_t stage = to + static_cast<uint32_t>(tile % Shape::kStages * Shape::kStageBytes);
#pragma unroll
      for (int i = 0; i < Shape::kStrips; ++i) {
        Weights::Copy(stage + static_cast<uint32_t>(my_strips + i * Shape::kStripBytes), strips[i],
                      tile, lane);
      }
#pragma unroll
      for (int i = 0; i < Shape::kPieces; ++i) {
        const int at = static_cast<int>(threadIdx.x) + i * Shape::kThreads;
        if (at >= Shape::kRows * 8) break;
        const int64_t column = int64_t{tile} * kTileWidth + at % 8 * 8;
        const bool is_there = rows.rows[i] != nullptr && column < rows.columns;
#pragma unroll
        for (int part = 0; part < Shape::kParts; ++part) {
          const uint16_t* from = rows.rows[i] + column + part * rows.low_offset;
          CopyAsync16(
              stage + static_cast<uint32_t>(part * Shape::kRowBytes) + PlaceOfPiece(at / 8, at % 8),
              is_there ? from : nullptr, is_there);
        }
      }
    }
    CommitCopies();  // also where there is nothing: groups are counted
  };

#pragma unroll
  for (int tile = 0; tile < Shape::kStages - 1; ++tile) load(tile);
  for (int tile = 0; tile < n_tiles; ++tile) {
    WaitForCopies<Shape::kStages - 2>();
    __syncthreads();  // everyone's copies are there, and the stage to be filled has been read
    load(tile + Shape::kStages - 1);
    const uint8_t* stage = stages + tile % Shape::kStages * Shape::kStageBytes;
    Weights weights[Shape::kStrips];
#pragma unroll
    for (int i = 0; i < Shape::kStrips; ++i) {
      weights[i].Load(stage + my_strips + i * Shape::kStripBytes, lane);
    }
    const uint32_t first_row =
        SharedAddress(stage) + static_cast<uint32_t>((lane / 16 * 8 + lane % 8) * 128);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      uint32_t a[Shape::kStrips][4];
#pragma unroll
      for (int i = 0; i < Shape::kStrips; ++i) {
        weights[i].Decode(s, stage + my_strips + i * Shape::kStripBytes, table, lane, a[i]);
      }
      const auto piece = static_cast<uint32_t>(((2 * s + lane / 8 % 2) ^ (lane % 8)) << 4);
#pragma unroll
      for (int j = 0; j < Shape::kRows / 16; ++j) {
#pragma unroll
        for (int part = 0; part < Shape::kParts; ++part) {
          uint32_t b[4];
          LoadMatrices(
              b, first_row + piece + static_cast<uint32_t>(part * Shape::kRowBytes + j * 2048));
#pragma unroll
          for (int i = 0; i < Shape::kStrips; ++i) {
            if constexpr (Shape::kKind == WeightKind::kBF16) {
              MultiplyBf16(acc[i][2 * j], a[i], b[0], b[1]);
              MultiplyBf16(acc[i][2 * j + 1], a[i], b[2], b[3]);
            } else {
              MultiplyHalf(acc[i][2 * j], a[i], b[0], b[1]);
              MultiplyHalf(acc[i][2 * j + 1], a[i], b[2], b[3]);
            }
          }
        }
      }
    }
  }
}

}  // namespace hearth::worker
