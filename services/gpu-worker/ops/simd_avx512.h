// Sixteen floats, and 16 x int32 sums of byte products, in AVX-512 registers. Included by one
// kernels_*.cc, which says the namespace: HEARTH_ISA. simd_avx2.h has the same names.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace hearth::worker::HEARTH_ISA {

constexpr int kSumRegisters = 16;  // vectors that a loop may keep as sums, of 32

struct V {
  __m512 v;
};
inline V Zero() { return {_mm512_setzero_ps()}; }
inline V Set(float x) { return {_mm512_set1_ps(x)}; }
inline V Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline __mmask16 FirstN(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
// The first n < 16 values, then zeros.
inline V LoadN(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(FirstN(n), p)}; }
inline void Store(V a, float* p) { _mm512_storeu_ps(p, a.v); }
inline void StoreN(V a, float* p, int64_t n) { _mm512_mask_storeu_ps(p, FirstN(n), a.v); }
inline V Bf16Bits(__m256i halves) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
inline V LoadBf16(const uint16_t* p) {
  return Bf16Bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline V LoadF16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V Fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline V Max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V Min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
inline V Abs(V a) { return {_mm512_abs_ps(a.v)}; }
inline V Round(V a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for whole n.
inline V Scale2(V a, V n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline float SumAll(V a) { return _mm512_reduce_add_ps(a.v); }
inline float MaxAll(V a) { return _mm512_reduce_max_ps(a.v); }
// The first n lanes of a, then `fill`.
inline V KeepFirst(V a, int64_t n, V fill) {
  return {_mm512_mask_blend_ps(FirstN(n), fill.v, a.v)};
}
// Whole values in [-127, 127] to 16 bytes.
inline void StoreInt8(V whole, int8_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole.v)));
}

// Lane i of the result is the sum of a[i]'s lanes.
inline V SumEach(const V (&a)[16]) {
  __m512 pairs[8], quads[4];
  for (int i = 0; i < 8; ++i) {
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i].v, a[2 * i + 1].v),
                             _mm512_unpackhi_ps(a[2 * i].v, a[2 * i + 1].v));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(pairs[2 * i]), y = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  // Each 128-bit part of quads[i] holds partial sums of a[4 i .. 4 i + 3].
  const __m512 lo = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88),
                                  _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
  const __m512 hi = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88),
                                  _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(lo, hi, 0x88), _mm512_shuffle_f32x4(lo, hi, 0xdd))};
}

// Sixteen int32 sums, one a row of a strip.
struct Sums {
  __m512i v;
};
// 4 columns of 16 rows: a byte of weights each.
struct Bytes {
  __m512i v;
};
inline Sums StartSums(int32_t offset) { return {_mm512_set1_epi32(offset)}; }
inline Sums ZeroSums() { return {_mm512_setzero_si512()}; }
inline Sums operator+(Sums a, Sums b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline V ToFloat(Sums a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Bytes LoadBytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }

// The 16 levels in each quarter: vpermb looks at six bits of an index, so that the other code's
// bits need no masking away.
struct Levels {
  __m512i v;
  explicit Levels(const uint8_t* levels)
      : v(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)))) {}
};
inline Bytes LowLevels(Bytes codes, const Levels& levels) {
  return {_mm512_permutexvar_epi8(codes.v, levels.v)};
}
inline Bytes HighLevels(Bytes codes, const Levels& levels) {
  return {_mm512_permutexvar_epi8(_mm512_srli_epi16(codes.v, 4), levels.v)};
}
inline Bytes FromByteWeights(Bytes shifted) { return shifted; }
// sums + weights (4 of each row) . x (the same 4 for every row).
inline Sums AddProducts(Sums sums, Bytes weights, const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return {_mm512_dpbusd_epi32(sums.v, weights.v, _mm512_set1_epi32(four))};
}

}  // namespace hearth::worker::HEARTH_ISA
