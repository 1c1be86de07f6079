// Device code that reads tiles (common/tensor/tiled.h). One warp reads one tile: lane l holds the
// bytes 16 l .. 16 l + 15 of each half kilobyte, which are rows 4 (l % 4) .. + 3 of columns
// 4 (l / 4) .. + 3 and, 32 columns on, of four more. Only for .cu files.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/linear.h"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {

inline constexpr int kRowsATile = 16, kColumnsATile = 64, kRowsALane = 4;
// Levels of a byte's two codes, one copy for each of 16 lanes: a warp's 64-bit loads are served
// half a warp at a time, and copy l lies in banks 2 l and 2 l + 1, so none conflicts.
inline constexpr int kTableCopies = 16;
inline constexpr int kTableBytes = 256 * kTableCopies * 8;

template <int kBits>
struct RawTile {
  static_assert(kBits == 4 || kBits == 8);
  static constexpr int kBytes = kRowsATile * kColumnsATile * kBits / 8;
  uint4 codes[kBits / 4];
  uint2 scales;  // f16, of the lane's four rows
};

// Weights are read once: they shall not displace what the L1 holds.
__device__ inline uint4 LoadOnce(const void* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}
__device__ inline uint2 LoadOnce8(const void* at) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(at));
  return v;
}

template <int kBits>
__device__ inline RawTile<kBits> LoadTile(const uint8_t* data, const uint16_t* scales, int64_t tile,
                                          int lane) {
  RawTile<kBits> raw;
  const uint8_t* at = data + tile * RawTile<kBits>::kBytes + lane * 16;
#pragma unroll
  for (int i = 0; i < kBits / 4; ++i) raw.codes[i] = LoadOnce(at + i * 512);
  raw.scales = LoadOnce8(scales + tile * kRowsATile + lane % 4 * kRowsALane);
  return raw;
}

// All threads of the block together; a barrier must follow. `table` has kTableBytes.
__device__ inline void FillTable(const Levels& levels, float2* table) {
  for (int i = static_cast<int>(threadIdx.x); i < 256 * kTableCopies;
       i += static_cast<int>(blockDim.x)) {
    const int byte = i / kTableCopies;
    table[i] = make_float2(levels.values[byte & 15], levels.values[byte >> 4]);
  }
}

// The lane's weights of one row without their scale: [0, 4) of the earlier columns, [4, 8) of those
// 32 on.
template <int kBits>
__device__ inline void DecodeRow(const RawTile<kBits>& raw, int row, const float2* table, int lane,
                                 float (&w)[8]) {
  const auto word = [row](const uint4& v) {
    return row == 0 ? v.x : row == 1 ? v.y : row == 2 ? v.z : v.w;
  };
  if constexpr (kBits == 4) {
    const uint32_t codes = word(raw.codes[0]);
    const uint32_t copy = static_cast<uint32_t>(lane) % kTableCopies * 8;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // Byte j times the 128 bytes between two entries; "or" with the lane's copy is one
      // instruction with the "and".
      const uint32_t at = ((j == 0 ? codes << 7 : codes >> (8 * j - 7)) & 0x7f80u) | copy;
      const float2 pair =
          *reinterpret_cast<const float2*>(reinterpret_cast<const char*>(table) + at);
      w[j] = pair.x;
      w[4 + j] = pair.y;
    }
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t bytes = word(raw.codes[half]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // The float 2^23 + byte, less 2^23 + 128.
        w[4 * half + j] = __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u + j)) - 8388736.f;
      }
    }
  }
}

__device__ inline float Dot8(const float (&w)[8], const float4& a, const float4& b) {
  float sum = w[0] * a.x;
  sum = fmaf(w[1], a.y, sum);
  sum = fmaf(w[2], a.z, sum);
  sum = fmaf(w[3], a.w, sum);
  sum = fmaf(w[4], b.x, sum);
  sum = fmaf(w[5], b.y, sum);
  sum = fmaf(w[6], b.z, sum);
  return fmaf(w[7], b.w, sum);
}

// acc[t][i] += (scale of row i * multiplier) * sum over the lane's columns of weight * x. `x`
// points at the tile's first column of row 0 in shared memory; rows lie `stride` apart.
template <int kBits, int kRows>
__device__ inline void AddTile(const RawTile<kBits>& raw, const float2* table, const float* x,
                               int stride, int lane, float multiplier,
                               float (&acc)[kRows][kRowsALane]) {
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&raw.scales.x));
  const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&raw.scales.y));
  const float scale[kRowsALane] = {low.x * multiplier, low.y * multiplier, high.x * multiplier,
                                   high.y * multiplier};
  const float* mine = x + lane / 4 * 4;
  const auto load_x = [&](int t, float4& a, float4& b) {
    a = *reinterpret_cast<const float4*>(mine + t * stride);
    b = *reinterpret_cast<const float4*>(mine + t * stride + 32);
  };
  // Few rows keep x in registers and decode a row at a time, many keep the weights: the same sums.
  if constexpr (kRows <= 2) {
    float4 a[kRows], b[kRows];
#pragma unroll
    for (int t = 0; t < kRows; ++t) load_x(t, a[t], b[t]);
#pragma unroll
    for (int i = 0; i < kRowsALane; ++i) {
      float w[8];
      DecodeRow<kBits>(raw, i, table, lane, w);
#pragma unroll
      for (int t = 0; t < kRows; ++t) acc[t][i] = fmaf(scale[i], Dot8(w, a[t], b[t]), acc[t][i]);
    }
  } else {
    float w[kRowsALane][8];
#pragma unroll
    for (int i = 0; i < kRowsALane; ++i) DecodeRow<kBits>(raw, i, table, lane, w[i]);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      float4 a, b;
      load_x(t, a, b);
#pragma unroll
      for (int i = 0; i < kRowsALane; ++i) {
        acc[t][i] = fmaf(scale[i], Dot8(w[i], a, b), acc[t][i]);
      }
    }
  }
}

// Sums over the eight lanes that share rows, in a fixed order, by exchanging halves: four shuffles
// for four rows. Lanes without bit 2 return the sum of row RowOfLane(lane) of the tile.
__device__ inline float SumOfRow(const float (&acc)[kRowsALane], int lane) {
  const bool second = (lane & 16) != 0, odd = (lane & 8) != 0;
  const float keep0 = second ? acc[2] : acc[0], keep1 = second ? acc[3] : acc[1];
  const float give0 = second ? acc[0] : acc[2], give1 = second ? acc[1] : acc[3];
  const float v0 = keep0 + __shfl_xor_sync(0xffffffffu, give0, 16);
  const float v1 = keep1 + __shfl_xor_sync(0xffffffffu, give1, 16);
  const float v = (odd ? v1 : v0) + __shfl_xor_sync(0xffffffffu, odd ? v0 : v1, 8);
  return v + __shfl_xor_sync(0xffffffffu, v, 4);
}
__device__ inline int RowOfLane(int lane) {
  return lane % 4 * kRowsALane + (lane & 16) / 8 + (lane & 8) / 8;
}

// Copies n_rows rows of `width` values (a multiple of 4, 16-byte aligned) to shared memory and
// zeros the rows up to n_all. A barrier must follow.
__device__ inline void StageRows(const float* from, int n_rows, int n_all, int width, float* to) {
  const int n = n_rows * width / 4, all = n_all * width / 4;
  const auto* source = reinterpret_cast<const float4*>(from);
  auto* target = reinterpret_cast<float4*>(to);
  for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
    target[i] = i < n ? source[i] : make_float4(0.f, 0.f, 0.f, 0.f);
  }
}

}  // namespace hearth::worker
