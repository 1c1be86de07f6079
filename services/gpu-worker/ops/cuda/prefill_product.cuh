// The prefill's inner loop: strips of 16 outputs (prefill_tile.cuh), a few a warp, times rows of
// activations that the block's warps share. A strip is the product's 16 x K side, activations its
// K x 8 one, so that few rows waste little. Both come to shared memory a tile of 64 columns at a
// time, several tiles ahead.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "services/gpu-worker/ops/cuda/prefill_tile.cuh"
#include "services/gpu-worker/ops/cuda/tensor_core.cuh"

namespace hearth::worker {

// How a block divides a product: warps, strips a warp, rows of activations, tiles that shared
// memory holds, parts that x comes in.
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

// A block's way through tiles: rounds of n_tiles each. From a round to the next, rows stay and
// strips move on by `skip` tiles beyond their own. One round is known to be one when compiling:
// what becomes of its sums then stays out of the loop.
struct OneRound {
  int n_tiles = 0;
  static constexpr int n_rounds = 1, skip = 0;
};
struct Rounds {
  int n_tiles = 0;
  int n_rounds = 0;
  int skip = 0;
};

// Copies one tile after the other to the stages.
template <typename Shape, typename Way>
struct TileLoader {
  using Source = typename TileWeights<Shape::kKind>::Source;

  template <size_t... kAt>
  __device__ TileLoader(const Strip (&strips)[Shape::kStrips], const RowPlaces<Shape>& rows,
                        const Way& all, int strips_at, std::index_sequence<kAt...>)
      : sources{Source(strips[kAt], static_cast<int>(threadIdx.x) % kWarp)...},
        rounds(all),
        to_strips(static_cast<uint32_t>(strips_at)),
        low_offset(rows.low_offset),
        columns(static_cast<int>(rows.columns) - static_cast<int>(threadIdx.x) % 8 * 8) {
#pragma unroll
    for (int i = 0; i < Shape::kPieces; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * Shape::kThreads;
      is_row[i] = rows.rows[i] != nullptr;
      pieces[i] = rows.rows[i] + at % 8 * 8;
      places[i] = PlaceOfPiece(at / 8, at % 8);
    }
  }

  __device__ void CopyNext(uint32_t stage) {
#pragma unroll
    for (int i = 0; i < Shape::kStrips; ++i) {
      sources[i].CopyNext(stage + to_strips + static_cast<uint32_t>(i * Shape::kStripBytes));
    }
#pragma unroll
    for (int i = 0; i < Shape::kPieces; ++i) {
      if (Shape::kRows * 8 % Shape::kThreads != 0 &&
          static_cast<int>(threadIdx.x) + i * Shape::kThreads >= Shape::kRows * 8) {
        break;
      }
      const bool is_there = is_row[i] && (Shape::kKind != WeightKind::kBF16 || columns > 0);
#pragma unroll
      for (int part = 0; part < Shape::kParts; ++part) {
        CopyAsync16(stage + static_cast<uint32_t>(part * Shape::kRowBytes) + places[i],
                    pieces[i] + part * low_offset, is_there);
      }
      pieces[i] += kTileWidth;
    }
    columns -= kTileWidth;
    if constexpr (std::is_same_v<Way, Rounds>) {
      if (++n_copied == rounds.n_tiles) NextRound();
    }
  }
  __device__ void NextRound() {
    n_copied = 0;
#pragma unroll
    for (int i = 0; i < Shape::kStrips; ++i) {
      sources[i].Skip(rounds.skip);
      --sources[i].rounds;
    }
#pragma unroll
    for (int i = 0; i < Shape::kPieces; ++i) pieces[i] -= rounds.n_tiles * kTileWidth;
  }

  Source sources[Shape::kStrips];
  Way rounds;
  uint32_t to_strips;
  int64_t low_offset;
  int columns, n_copied = 0;
  const uint16_t* pieces[Shape::kPieces];
  uint32_t places[Shape::kPieces];
  bool is_row[Shape::kPieces];
};

template <typename Shape>
using ProductSums = float[Shape::kStrips][Shape::kRows / 8][4];

// sums[strip][j] = strip x rows 8 j .. 8 j + 7 of a round, for which flush(round, sums) is called.
// `stages` holds kStages * kStageBytes, `table` the block's table (its writes are ordered by the
// first barrier here). All warps of the block together; the stages are free again after the next
// barrier.
template <typename Shape, typename Way, typename Flush>
__device__ void MultiplyStrips(const Strip (&strips)[Shape::kStrips], const RowPlaces<Shape>& rows,
                               const Way& rounds, uint8_t* stages, const uint8_t* table,
                               Flush flush) {
  using Weights = TileWeights<Shape::kKind>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int my_strips = Shape::kParts * Shape::kRowBytes +
                        static_cast<int>(threadIdx.x) / kWarp * Shape::kStrips * Shape::kStripBytes;
  TileLoader<Shape, Way> loader(strips, rows, rounds, my_strips,
                                std::make_index_sequence<Shape::kStrips>());
  const int n_all = rounds.n_rounds * rounds.n_tiles;
  const uint32_t first_stage = SharedAddress(stages);
#pragma unroll
  for (int tile = 0; tile < Shape::kStages - 1; ++tile) {
    if (tile < n_all) {
      loader.CopyNext(first_stage + static_cast<uint32_t>(tile * Shape::kStageBytes));
    }
    CommitCopies();  // also where there is nothing: groups are counted
  }
  int read = 0, write = (Shape::kStages - 1) * Shape::kStageBytes;
  const auto next = [](int at) {
    return at == (Shape::kStages - 1) * Shape::kStageBytes ? 0 : at + Shape::kStageBytes;
  };

  ProductSums<Shape> sums = {};
  [[maybe_unused]] int in_round = 0, round = 0;
  for (int tile = 0; tile < n_all; ++tile) {
    WaitForCopies<Shape::kStages - 2>();
    __syncthreads();  // everyone's copies are there, and the stage to be filled has been read
    if (tile + Shape::kStages - 1 < n_all) {
      loader.CopyNext(first_stage + static_cast<uint32_t>(write));
    }
    CommitCopies();
    const uint8_t* const stage = stages + read;
    const uint32_t first_row =
        SharedAddress(stage) + static_cast<uint32_t>((lane / 16 * 8 + lane % 8) * 128);
    read = next(read), write = next(write);
    Weights weights[Shape::kStrips];
#pragma unroll
    for (int i = 0; i < Shape::kStrips; ++i) {
      weights[i].Load(stage + my_strips + i * Shape::kStripBytes, lane);
    }
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
            Weights::Multiply(sums[i][2 * j], a[i], b[0], b[1]);
            Weights::Multiply(sums[i][2 * j + 1], a[i], b[2], b[3]);
          }
        }
      }
    }
    if constexpr (std::is_same_v<Way, Rounds>) {
      if (++in_round < rounds.n_tiles) continue;
      flush(round, sums);
      in_round = 0, ++round;
#pragma unroll
      for (int i = 0; i < Shape::kStrips; ++i) {
#pragma unroll
        for (int j = 0; j < Shape::kRows / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[i][j][c] = 0;
        }
      }
    }
  }
  if constexpr (std::is_same_v<Way, OneRound>) flush(0, sums);
}

}  // namespace hearth::worker
