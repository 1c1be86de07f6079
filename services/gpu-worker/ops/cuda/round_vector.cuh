// Device code that rounds activations to int8, a block of 64 with one scale: for the kernels that
// multiply them as integers (mma_tile.cuh) and for those that hand rows to these. Only for .cu
// files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/rounded_rows.h"

namespace hearth::worker {

__device__ inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t v;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(selector));
  return v;
}

inline constexpr float kWhole = 12582912.f;  // 1.5 * 2^23: adding it leaves whole numbers

// Rounds four neighbours of a row, as rounded_rows.h says for weights of kBits. Whole warps call
// it; each half of one has a block's 64 values together, lane l its columns 4 (l % 16) .. + 3, and
// writes them to `at` (of 16 words) and `scale`, if it has any.
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

// Four neighbours of row `row` of `width` values to where the 4-bit kernels look for them; called
// as StageVector. `rounded` has a place for them.
__device__ inline void StoreRounded(const float4& v, bool has_any, const RoundedRows& rounded,
                                    int64_t row, int width, int column) {
  const int64_t block = (row * width + column) / 64;
  StageVector<4>(v, has_any, 1.f, rounded.words + block * 16, rounded.scales + block);
}

}  // namespace hearth::worker
