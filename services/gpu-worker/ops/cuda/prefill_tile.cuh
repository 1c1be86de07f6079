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
#include <utility>

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
        is_there(strip.data != nullptr),
        has_scales(lane < 4) {}
  __device__ void CopyNext(uint32_t tile) {
#pragma unroll
    for (int i = 0; i < kPieces / kWarp; ++i) {  // pieces 32 further are swapped alike
      CopyAsync16(tile + to + i * kWarp * 16, codes + i * kWarp * 16, is_there);
    }
    if (has_scales) CopyAsync8(tile + to_scales, scales, is_there);
    codes += kPieces * 16;
    scales += kStripRows;
  }
  const uint8_t* codes;
  const uint16_t* scales;
  uint32_t to, to_scales;
  bool is_there, has_scales;
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

template <typename Source, int kCount>
struct Sources {
  Source at[kCount];
};

// acc[strip][j] += strip x rows 8 j .. 8 j + 7, over n_tiles tiles. `stages` holds kStages *
// kStageBytes, `table` the block's table. All warps of the block together; the stages are free
// again after the next barrier.
template <typename Shape>
__device__ void MultiplyStrips(const Strip (&strips)[Shape::kStrips], const RowPlaces<Shape>& rows,
                               int n_tiles, uint8_t* stages, const uint8_t* table,
                               float (&acc)[Shape::kStrips][Shape::kRows / 8][4]) {
  using Weights = TileWeights<Shape::kKind>;
  using Source = typename Weights::Source;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int my_strips =
      Shape::kParts * Shape::kRowBytes + warp * Shape::kStrips * Shape::kStripBytes;
  const auto sources = [&]<size_t... kAt>(std::index_sequence<kAt...>) {
    return Sources<Source, Shape::kStrips>{{Source(strips[kAt], lane)...}};
  };
  auto from = sources(std::make_index_sequence<Shape::kStrips>());
  const uint16_t* pieces[Shape::kPieces];
  uint32_t places[Shape::kPieces];
#pragma unroll
  for (int i = 0; i < Shape::kPieces; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * Shape::kThreads;
    pieces[i] = rows.rows[i] == nullptr ? nullptr : rows.rows[i] + at % 8 * 8;
    places[i] = PlaceOfPiece(at / 8, at % 8);
  }
  int columns = static_cast<int>(rows.columns) - static_cast<int>(threadIdx.x) % 8 * 8;

  // The next tile, to the stage at `to`.
  const auto load = [&](uint32_t to) {
#pragma unroll
    for (int i = 0; i < Shape::kStrips; ++i) {
      from.at[i].CopyNext(to + static_cast<uint32_t>(my_strips + i * Shape::kStripBytes));
    }
#pragma unroll
    for (int i = 0; i < Shape::kPieces; ++i) {
      if (Shape::kRows * 8 % Shape::kThreads != 0 &&
          static_cast<int>(threadIdx.x) + i * Shape::kThreads >= Shape::kRows * 8) {
        break;
      }
      const bool is_there =
          pieces[i] != nullptr && (Shape::kKind != WeightKind::kBF16 || columns > 0);
#pragma unroll
      for (int part = 0; part < Shape::kParts; ++part) {
        CopyAsync16(to + static_cast<uint32_t>(part * Shape::kRowBytes) + places[i],
                    is_there ? pieces[i] + part * rows.low_offset : nullptr, is_there);
      }
      if (pieces[i] != nullptr) pieces[i] += kTileWidth;
    }
    columns -= kTileWidth;
  };

  const uint32_t first_stage = SharedAddress(stages);
#pragma unroll
  for (int tile = 0; tile < Shape::kStages - 1; ++tile) {
    if (tile < n_tiles) load(first_stage + static_cast<uint32_t>(tile * Shape::kStageBytes));
    CommitCopies();  // also where there is nothing: groups are counted
  }
  int read = 0, write = (Shape::kStages - 1) * Shape::kStageBytes;
  const auto next = [](int at) {
    return at == (Shape::kStages - 1) * Shape::kStageBytes ? 0 : at + Shape::kStageBytes;
  };
  for (int tile = 0; tile < n_tiles; ++tile) {
    WaitForCopies<Shape::kStages - 2>();
    __syncthreads();  // everyone's copies are there, and the stage to be filled has been read
    if (tile + Shape::kStages - 1 < n_tiles) load(first_stage + static_cast<uint32_t>(write));
    CommitCopies();
    const uint8_t* stage = stages + read;
    read = next(read), write = next(write);
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
