// Device code that multiplies tiles (common/tensor/tiled.h) as integers with up to eight rows of
// activations at a time, by the tensor cores: 16 weight rows by 64 columns by 8 activation rows.
// Only for .cu files.
//
// The arithmetic is the fast CPU backend's: activations as int8 a block of 64 with scale
// max|x| / 127, whole numbers summed exactly over the block, then float32. A row of activations is
// a column of the product that no other row touches, so its bits do not depend on the batch.
//
// One warp takes one tile. Lane 4 g + t (g < 8, t < 4) reads the weights of rows 2 g and 2 g + 1 in
// columns 4 c .. 4 c + 3 for c = t, t + 4, ..., and gets the sums of those two rows with the
// activation rows 2 t and 2 t + 1.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/copy_async.cuh"
#include "services/gpu-worker/ops/cuda/decode_levels.h"
#include "services/gpu-worker/ops/cuda/round_vector.cuh"
#include "services/gpu-worker/ops/cuda/rounded_rows.h"
#include "services/gpu-worker/ops/cuda/tile_device.h"

namespace hearth::worker {

inline constexpr int kMmaRows = 8;  // of activations

template <int kBits>
struct MmaTile {
  static_assert(kBits == 4 || kBits == 8);
  static constexpr int kBytes = kRowsATile * kColumnsATile * kBits / 8;
  uint2 words[kBits / 2];  // .x of row 2 g, .y of row 2 g + 1
  uint32_t scales;         // f16, of both rows
};

// Both pointers are the lane's: LaneCodes and LaneScales past the tile's. Without a branch, so that
// the work on tiles at hand goes on around it. A tile that is not there has scales of zero and
// otherwise anything.
template <int kBits>
__device__ inline void LoadMmaTile(const uint8_t* codes, const uint8_t* scales, bool is_there,
                                   MmaTile<kBits>& to) {
#pragma unroll
  for (int i = 0; i < kBits / 2; ++i) {
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %3, 0;"
        " @p ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];}"
        : "=r"(to.words[i].x), "=r"(to.words[i].y)
        : "l"(codes + i * 256), "r"(static_cast<int>(is_there)));
  }
  asm volatile(
      "{.reg .pred p; setp.ne.s32 p, %2, 0; mov.u32 %0, 0;"
      " @p ld.global.nc.L1::no_allocate.u32 %0, [%1];}"
      : "=r"(to.scales)
      : "l"(scales), "r"(static_cast<int>(is_there)));
}
__device__ inline int LaneCodes(int lane) { return lane % 4 * 64 + lane / 4 * 8; }
__device__ inline int LaneScales(int lane) { return lane / 4 * 4; }
inline constexpr int kScaleBytes = 2 * kRowsATile;  // of a tile

// The tiles that one warp has under way: a ring of kDepth places in shared memory, asked for and
// taken in the same order. All lanes call its functions together.
template <int kBits, int kDepth>
class TilePipe {
 public:
  static constexpr int kPlace = MmaTile<kBits>::kBytes + 2 * kRowsATile;
  static constexpr int kBytes = kDepth * kPlace;

  __device__ TilePipe(void* shared, int lane) : ring_(static_cast<uint8_t*>(shared)), lane_(lane) {}

  // Both pointers are the tile's, at multiples of 16 bytes; nullptr asks for nothing, and what is
  // taken for it is undefined. At most kDepth may be asked for and not yet taken.
  __device__ void Ask(const uint8_t* codes, const uint16_t* scales) {
    uint8_t* place = ring_ + asked_;
    if (codes != nullptr) {
#pragma unroll
      for (int i = 0; i < kBits / 4; ++i) {
        CopyAsync16(place + i * 512 + lane_ * 16, codes + i * 512 + lane_ * 16);
      }
      if (lane_ < 2) CopyAsync16(place + MmaTile<kBits>::kBytes + lane_ * 16, scales + lane_ * 8);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    asked_ = asked_ + kPlace == kBytes ? 0 : asked_ + kPlace;
  }

  // Requires kDepth asked for and not taken.
  __device__ MmaTile<kBits> Take() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kDepth - 1) : "memory");
    __syncwarp();  // the other lanes' parts have come too
    const uint8_t* place = ring_ + taken_;
    MmaTile<kBits> tile;
#pragma unroll
    for (int i = 0; i < kBits / 2; ++i) {
      tile.words[i] =
          *reinterpret_cast<const uint2*>(place + i * 256 + lane_ % 4 * 64 + lane_ / 4 * 8);
    }
    tile.scales =
        *reinterpret_cast<const uint32_t*>(place + MmaTile<kBits>::kBytes + lane_ / 4 * 4);
    __syncwarp();  // before the place is filled again
    taken_ = taken_ + kPlace == kBytes ? 0 : taken_ + kPlace;
    return tile;
  }

 private:
  uint8_t* ring_;
  int lane_;
  int asked_ = 0, taken_ = 0;  // bytes from the ring's first
};

// Activations in shared memory: words [blocks of 64, n_rows, 4 (t), 4], in the order in which a
// lane's four registers meet the weights' (kBits), and scales [blocks, n_rows].
struct StagedRows {
  uint32_t* words;
  float* scales;
};
__host__ __device__ constexpr int64_t StagedBytes(int n_rows, int64_t in) {
  return (n_rows * (in + in / kColumnsATile * 4) + 15) / 16 * 16;
}
__device__ inline StagedRows StagedIn(void* shared, int n_rows, int in) {
  auto* words = static_cast<uint32_t*>(shared);
  return {words, reinterpret_cast<float*>(words + n_rows * in / 4)};
}

// Rounds n_rows rows of `in` values, the whole block together; a barrier must follow. value(row,
// column) is the four from that column on, multiplier(block) goes on the block's scale.
template <int kBits, typename Value, typename Multiplier>
__device__ inline void StageRounded(int n_rows, int in, Value value, Multiplier multiplier,
                                    const StagedRows& to) {
  constexpr int kAtOnce = 4;  // loads under way
  const int n = in / 4, step = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at - at % kWarp < n; at += step) {  // whole warps
    const bool has_any = at < n;
    const int block = has_any ? at / 16 : 0;
    const float by = has_any ? multiplier(block) : 0.f;
#pragma unroll 1
    for (int first = 0; first < n_rows; first += kAtOnce) {
      float4 v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < n_rows) {
          v[i] = has_any ? value(first + i, at * 4) : make_float4(0.f, 0.f, 0.f, 0.f);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= n_rows) break;
        const int place = block * n_rows + first + i;
        StageVector<kBits>(v[i], has_any, by, to.words + place * 16, to.scales + place);
      }
    }
  }
}

// The same of rows that are rounded already, in the order of 4-bit weights; row_of(row) is which.
template <typename RowOf>
__device__ inline void StageCopies(int n_rows, int in, const RoundedRows& from, RowOf row_of,
                                   const StagedRows& to) {
  const int n_blocks = in / kColumnsATile, step = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int row = 0; row < n_rows; ++row) {
    const int64_t block = row_of(row) * int64_t{n_blocks};
    const auto* words = reinterpret_cast<const uint4*>(from.words + block * 16);
    auto* target = reinterpret_cast<uint4*>(to.words);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < n_blocks * 4; i += step) {
      target[(i / 4 * n_rows + row) * 4 + i % 4] = words[i];
    }
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < n_blocks; i += step) {
      to.scales[i * n_rows + row] = from.scales[block + i];
    }
  }
}

// d = a b + c, of 16 x 32 weights and 32 x 8 activations; all of c are the same.
__device__ inline void MultiplyAdd(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                   uint32_t b0, uint32_t b1, int c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %10, %10, %10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(c));
}
__device__ inline void MultiplyAdd(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                   uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Sums over the tile's columns, exact: of row 2 g with activation rows 2 t and 2 t + 1, then of row
// 2 g + 1. Sums start as the bits of kWhole, which makes floats of them without a conversion: they
// stay below 64 * 127 * 127 < 2^22.
__device__ inline void TileSums(const MmaTile<4>& tile, const DecodeLevels& levels, const uint4& x,
                                float (&sums)[4]) {
  constexpr int kStart = 0x4b400000;  // kWhole
  // Where a selector's top bit is set, the permutation repeats the picked byte's sign: zero.
  const auto low = [&](uint32_t codes) { return Permute(levels.low[0], levels.low[1], codes); };
  const auto high = [&](uint32_t flipped) {
    return Permute(levels.high[0], levels.high[1], flipped);
  };
  int below[4], above[4];
  const uint32_t a = tile.words[0].x, b = tile.words[0].y;
  const uint32_t not_a = a ^ 0x88888888u, not_b = b ^ 0x88888888u;
  MultiplyAdd(below, low(a), low(b), low(a >> 16), low(b >> 16), x.x, x.y, kStart);
  MultiplyAdd(above, high(not_a), high(not_b), high(not_a >> 16), high(not_b >> 16), x.x, x.y,
              kStart);
  const uint32_t c = tile.words[1].x, d = tile.words[1].y;
  const uint32_t not_c = c ^ 0x88888888u, not_d = d ^ 0x88888888u;
  MultiplyAdd(below, low(c), low(d), low(c >> 16), low(d >> 16), x.z, x.w);
  MultiplyAdd(above, high(not_c), high(not_d), high(not_c >> 16), high(not_d >> 16), x.z, x.w);
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = __int_as_float(above[i]) - __int_as_float(below[i]);
}

__device__ inline void TileSums(const MmaTile<8>& tile, const DecodeLevels&, const uint4& x,
                                float (&sums)[4]) {
  constexpr int kStart = 0x4b400000;
  uint32_t w[4][2];  // signed
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[i][0] = tile.words[i].x ^ 0x80808080u;
    w[i][1] = tile.words[i].y ^ 0x80808080u;
  }
  int all[4];
  MultiplyAdd(all, w[0][0], w[0][1], w[1][0], w[1][1], x.x, x.y, kStart);
  MultiplyAdd(all, w[2][0], w[2][1], w[3][0], w[3][1], x.z, x.w);
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = __int_as_float(all[i]) - kWhole;
}

// What a lane adds up over tiles, in the order of TileSums.
struct MmaSums {
  float of[4] = {};
};

// Where a lane finds its activations: rows that are not there repeat the last, whose sums nobody
// reads.
struct MmaLane {
  int words;      // of row g in a block, in uint4s
  int scales[2];  // of rows 2 t and 2 t + 1
  __device__ MmaLane(int lane, int n_rows)
      : words(min(lane / 4, n_rows - 1) * 4 + lane % 4),
        scales{min(lane % 4 * 2, n_rows - 1), min(lane % 4 * 2 + 1, n_rows - 1)} {}
};

// kIsOne: there is one row, whose sums are the lane's [0] and [2].
template <bool kIsOne, int kBits>
__device__ inline void AddMmaTile(const MmaTile<kBits>& tile, const DecodeLevels& levels,
                                  const StagedRows& x, int block, int n_rows, const MmaLane& lane,
                                  MmaSums& sums) {
  const uint4 words = reinterpret_cast<const uint4*>(x.words)[block * n_rows * 4 + lane.words];
  const float* scales = x.scales + block * n_rows;
  float products[4];
  TileSums(tile, levels, words, products);
  const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(&tile.scales));
  const float a = scales[lane.scales[0]];
  sums.of[0] = fmaf(products[0], a * scale.x, sums.of[0]);
  sums.of[2] = fmaf(products[2], a * scale.y, sums.of[2]);
  if constexpr (!kIsOne) {
    const float b = scales[lane.scales[1]];
    sums.of[1] = fmaf(products[1], b * scale.x, sums.of[1]);
    sums.of[3] = fmaf(products[3], b * scale.y, sums.of[3]);
  }
}

// The kDepth tiles that a warp has at hand, tile i of those from `block` on, `step` apart, if below
// n_blocks; each is asked for anew by load(i, tile) as soon as it is decoded. In one straight line
// where all are there.
template <bool kIsOne, int kDepth, int kBits, typename Load>
__device__ inline void AddMmaTiles(MmaTile<kBits> (&tiles)[kDepth], const DecodeLevels& levels,
                                   const StagedRows& x, int block, int step, int n_blocks,
                                   int n_rows, const MmaLane& lane, MmaSums& sums, Load load) {
  if (block + (kDepth - 1) * step < n_blocks) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      AddMmaTile<kIsOne>(tiles[d], levels, x, block + d * step, n_rows, lane, sums);
      load(d, tiles[d]);
    }
  } else {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (block + d * step < n_blocks) {
        AddMmaTile<kIsOne>(tiles[d], levels, x, block + d * step, n_rows, lane, sums);
      }
      load(d, tiles[d]);
    }
  }
}

// to[row of activations][row of the tile].
__device__ inline void StoreSums(const MmaSums& sums, int lane, int n_rows,
                                 float (&to)[kMmaRows][kRowsATile]) {
  const int g = lane / 4, t = lane % 4;
  if (2 * t < n_rows) {
    *reinterpret_cast<float2*>(&to[2 * t][2 * g]) = make_float2(sums.of[0], sums.of[2]);
  }
  if (2 * t + 1 < n_rows) {
    *reinterpret_cast<float2*>(&to[2 * t + 1][2 * g]) = make_float2(sums.of[1], sums.of[3]);
  }
}

}  // namespace hearth::worker
