// Device code that multiplies tiles (common/tensor/tiled.h) as integers with up to eight rows of
// activations at a time, by the tensor cores: 16 weight rows by 64 columns by 8 activation rows.
// Only for .cu files.
//
// The arithmetic is the fast CPU backend's: activations as int8 a block of 64 with scale
// max|x| / 127, whole numbers summed exactly over the block, then float32. A row of activations is
// a column of the product that no other row touches, so its bits do not depend on the batch.
//
// One warp takes one tile, which its own asynchronous copies brought to shared memory. Lane 4 g + t
// (g < 8, t < 4) reads the weights of rows 2 g and 2 g + 1 in columns 4 c .. 4 c + 3 for c = t,
// t + 4, ..., and gets the sums of those two rows with the activation rows 2 t and 2 t + 1.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/decode_levels.h"
#include "services/gpu-worker/ops/cuda/tile_device.h"

namespace hearth::worker {

inline constexpr int kMmaRows = 8;  // of activations

__device__ inline void CopyAsync16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}

template <int kBits>
struct MmaTile {
  static_assert(kBits == 4 || kBits == 8);
  static constexpr int kBytes = kRowsATile * kColumnsATile * kBits / 8;
  uint2 words[kBits / 2];  // .x of row 2 g, .y of row 2 g + 1
  uint32_t scales;         // f16, of both rows
};

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

__device__ inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t v;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(selector));
  return v;
}

inline constexpr float kWhole = 12582912.f;  // 1.5 * 2^23: adding it leaves whole numbers

// Rounds four neighbours of a row. Whole warps call it; each half of one has a block's 64 values
// together, and writes them to `at` (of 16 words) and `scale`, if it has any.
template <int kBits>
__device__ inline void StageVector(const float4& v, bool has_any, float multiplier, uint32_t* at,
                                   float* scale) {
  const int part = static_cast<int>(threadIdx.x) % 16;  // columns 4 part .. 4 part + 3
  float top = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) {
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
  }
  const float inverse = top > 0 ? __fdiv_rn(127.f, top) : 0.f;
  const auto round = [inverse](float value) {
    return __float_as_uint(__fadd_rn(__fmul_rn(value, inverse), kWhole));  // its low byte
  };
  const uint32_t packed = Permute(Permute(round(v.x), round(v.y), 0x0040),
                                  Permute(round(v.z), round(v.w), 0x0040), 0x5410);
  if constexpr (kBits == 4) {
    // A byte of weights has columns 4 c + j and 32 + 4 c + j: so have the pairs of bytes here.
    const uint32_t other = __shfl_xor_sync(0xffffffffu, packed, 8);
    const bool is_late = part >= 8;
    const uint32_t word = is_late ? Permute(other, packed, 0x7362) : Permute(packed, other, 0x5140);
    if (has_any) at[part % 4 * 4 + part % 8 / 4 * 2 + (is_late ? 1 : 0)] = word;
  } else {
    if (has_any) at[part % 4 * 4 + part / 4] = packed;
  }
  if (has_any && part == 0) *scale = __fdiv_rn(top, 127.f) * multiplier;
}

// Rounds n_rows rows of `in` values, the whole block together; a barrier must follow. value(row,
// column) is the four from that column on, multiplier(row, block) goes on the block's scale.
template <int kBits, typename Value, typename Multiplier>
__device__ inline void StageRounded(int n_rows, int in, Value value, Multiplier multiplier,
                                    const StagedRows& to) {
  constexpr int kAtOnce = 4;  // loads under way
  const int a_row = in / 4, n = n_rows * a_row, step = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first - first % kWarp < n;
       first += kAtOnce * step) {  // whole warps
    float4 v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * step;
      v[i] = at < n ? value(at / a_row, at % a_row * 4) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * step;
      if (at - at % kWarp >= n) break;
      const int row = min(at, n - 1) / a_row, block = min(at, n - 1) % a_row / 16;
      const int place = block * n_rows + row;
      StageVector<kBits>(v[i], at < n, multiplier(row, block), to.words + place * 16,
                         to.scales + place);
    }
  }
}

// d += a b, of 16 x 32 weights and 32 x 8 activations.
__device__ inline void MultiplyAdd(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                   uint32_t b1, int (&d)[4]) {
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
  int below[4] = {kStart, kStart, kStart, kStart}, above[4] = {kStart, kStart, kStart, kStart};
  // Where a selector's top bit is set, the permutation repeats the picked byte's sign: zero.
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // columns c = t, then c = t + 4
    const uint32_t first = tile.words[i].x, second = tile.words[i].y;
    const uint32_t b0 = i == 0 ? x.x : x.z, b1 = i == 0 ? x.y : x.w;
    const auto low = [&](uint32_t codes) { return Permute(levels.low[0], levels.low[1], codes); };
    const auto high = [&](uint32_t codes) {
      return Permute(levels.high[0], levels.high[1], codes ^ 0x88888888u);
    };
    MultiplyAdd(low(first), low(second), low(first >> 16), low(second >> 16), b0, b1, below);
    MultiplyAdd(high(first), high(second), high(first >> 16), high(second >> 16), b0, b1, above);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = __int_as_float(above[i]) - __int_as_float(below[i]);
}

__device__ inline void TileSums(const MmaTile<8>& tile, const DecodeLevels&, const uint4& x,
                                float (&sums)[4]) {
  constexpr int kStart = 0x4b400000;
  int all[4] = {kStart, kStart, kStart, kStart};
  uint32_t w[4][2];  // signed
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[i][0] = tile.words[i].x ^ 0x80808080u;
    w[i][1] = tile.words[i].y ^ 0x80808080u;
  }
  MultiplyAdd(w[0][0], w[0][1], w[1][0], w[1][1], x.x, x.y, all);
  MultiplyAdd(w[2][0], w[2][1], w[3][0], w[3][1], x.z, x.w, all);
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

template <int kBits>
__device__ inline void AddMmaTile(const MmaTile<kBits>& tile, const DecodeLevels& levels,
                                  const StagedRows& x, int block, int n_rows, const MmaLane& lane,
                                  MmaSums& sums) {
  const uint4 words = reinterpret_cast<const uint4*>(x.words)[block * n_rows * 4 + lane.words];
  const float* scales = x.scales + block * n_rows;
  const float a = scales[lane.scales[0]], b = scales[lane.scales[1]];
  float products[4];
  TileSums(tile, levels, words, products);
  const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(&tile.scales));
  sums.of[0] = fmaf(products[0] * a, scale.x, sums.of[0]);
  sums.of[1] = fmaf(products[1] * b, scale.x, sums.of[1]);
  sums.of[2] = fmaf(products[2] * a, scale.y, sums.of[2]);
  sums.of[3] = fmaf(products[3] * b, scale.y, sums.of[3]);
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
