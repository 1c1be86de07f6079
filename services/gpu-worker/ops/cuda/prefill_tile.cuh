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

// A strip's tiles in device memory; null: all zeros. In a product of several rounds
// (prefill_product) it is the first round's strip, and `rounds` says how many have one.
struct Strip {
  const uint8_t* data = nullptr;
  const uint16_t* scales = nullptr;
  int rounds = 1;
  int64_t stride = 0;   // kBF16: values between two rows
  int64_t columns = 0;  // kBF16: values of a row
  int rows = 0;         // kBF16: rows that exist
};

// How a lane copies its part of a strip's tiles to shared memory, tile after tile; and what a warp
// holds of one tile while it multiplies it: Load reads the stage, Decode gives the strip's side of
// k step s (16 columns in tile order).
template <WeightKind kKind>
struct TileWeights;

// Swaps 16-byte pieces of a tile, so that the four words that lanes 4 g .. 4 g + 3 read together
// lie in different banks.
__device__ inline int SwappedPiece(int piece) { return piece ^ (piece >> 2 & 2); }

// Tiled strips: all pieces of codes, and by the first lanes those of the scales behind them.
template <int kPieces>
struct TileSource {
  __device__ TileSource(const Strip& strip, int lane)
      : codes(strip.data + lane * 16),
        scales(strip.scales + lane % 4 * 4),
        to(static_cast<uint32_t>(SwappedPiece(lane)) * 16),
        to_scales(kPieces * 16 + static_cast<uint32_t>(lane) * 8),
        rounds(strip.data == nullptr ? 0 : strip.rounds),
        has_scales(lane < 4) {}
  __device__ void CopyNext(uint32_t tile) {
    const bool is_there = rounds > 0;
#pragma unroll
    for (int i = 0; i < kPieces / kWarp; ++i) {  // pieces 32 further are swapped alike
      CopyAsync16(tile + to + i * kWarp * 16, codes + i * kWarp * 16, is_there);
    }
    if (has_scales) CopyAsync8(tile + to_scales, scales, is_there);
    Skip(1);
  }
  __device__ void Skip(int n_tiles) {
    codes += n_tiles * kPieces * 16;
    scales += n_tiles * kStripRows;
  }
  const uint8_t* codes;
  const uint16_t* scales;
  uint32_t to, to_scales;
  int rounds;
  bool has_scales;
};

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

  using Source = TileSource<32>;

  __device__ void Load(const uint8_t* tile, int lane) {
    words[0] = LoadWords(tile, 0, lane);
    words[1] = LoadWords(tile, 1, lane);
    const __half2 both = *reinterpret_cast<const __half2*>(tile + 512 + lane / 4 * 4);
    scales[0] = __low2half2(both), scales[1] = __high2half2(both);
  }
  __device__ void Decode(int s, const uint8_t*, const uint8_t* table, int lane,
                         uint32_t (&a)[4]) const {
    const auto mine = static_cast<uint32_t>(lane) * 4;  // the lane's copy of each entry
    const auto look = [&](uint32_t word) {
      const uint32_t at = ((s == 0 ? word << 7 : word >> (8 * s - 7)) & 0x7f80u) | mine;
      return *reinterpret_cast<const uint32_t*>(table + at);
    };
    a[0] = Scaled(look(words[0].x), scales[0]);
    a[1] = Scaled(look(words[0].y), scales[1]);
    a[2] = Scaled(look(words[1].x), scales[0]);
    a[3] = Scaled(look(words[1].y), scales[1]);
  }
  static __device__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MultiplyHalf(c, a, b0, b1);
  }
};

template <>
struct TileWeights<WeightKind::kTiled8> {
  static constexpr int kBytes = 1024 + 32;
  static constexpr float kFactor = 256;  // scales / 256: integers times scales are within f16
  uint2 words[4];
  __half2 scales[2];

  using Source = TileSource<64>;

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
  static __device__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MultiplyHalf(c, a, b0, b1);
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

  // Four of the strip's rows, one piece of each.
  struct Source {
    __device__ Source(const Strip& strip, int lane)
        : from(reinterpret_cast<const uint16_t*>(strip.data) + lane / 8 * strip.stride +
               lane % 8 * 8),
          stride(strip.stride),
          columns(static_cast<int>(strip.columns) - lane % 8 * 8),
          n_rows(strip.data == nullptr ? 0 : strip.rows),
          row(lane / 8),
          piece(lane % 8) {}
    __device__ void CopyNext(uint32_t tile) {
#pragma unroll
      for (int i = 0; i < kStripRows / 4; ++i) {
        const bool is_there = row + 4 * i < n_rows && columns > 0;
        CopyAsync16(tile + PlaceOfPiece(row + 4 * i, piece),
                    is_there ? from + 4 * i * stride : nullptr, is_there);
      }
      from += kTileWidth;
      columns -= kTileWidth;
    }
    const uint16_t* from;
    int64_t stride;
    int columns, n_rows, row, piece;
  };

  __device__ void Load(const uint8_t*, int) {}
  __device__ void Decode(int s, const uint8_t* tile, const uint8_t*, int lane,
                         uint32_t (&a)[4]) const {
    const int row = 2 * (lane % 8) + lane / 8 % 2;
    LoadMatrices(a, SharedAddress(tile) + PlaceOfPiece(row, 2 * s + lane / 16));
  }
  static __device__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MultiplyBf16(c, a, b0, b1);
  }
};

}  // namespace hearth::worker
