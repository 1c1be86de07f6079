// Sixteen floats, and 16 x int32 sums of byte products, in pairs of AVX2 registers; the names of
// simd_avx512.h. With HEARTH_AVX_VNNI byte products take one instruction instead of five.
// Included once by a kernels_*.cc, which says the namespace: HEARTH_ISA.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace hearth::worker::HEARTH_ISA {

constexpr int kSumRegisters = 4;  // vectors that a loop may keep as sums: 8 of 16 registers

struct V {
  __m256 a, b;
};
inline V Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
// All ones in the first n lanes of eight, which may be none or all.
inline __m256i FirstN(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline V LoadN(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, FirstN(n)), _mm256_maskload_ps(p + 8, FirstN(n - 8))};
}
inline void Store(V x, float* p) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline void StoreN(V x, float* p, int64_t n) {
  _mm256_maskstore_ps(p, FirstN(n), x.a);
  _mm256_maskstore_ps(p + 8, FirstN(n - 8), x.b);
}
inline __m256 Bf16Bits(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline V LoadBf16(const uint16_t* p) {
  return {Bf16Bits(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          Bf16Bits(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline V LoadF16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline V operator+(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V operator-(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V operator*(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V operator/(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V Fma(V x, V y, V z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline V Max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V Min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline V Abs(V x) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline V Round(V x) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
}
inline __m256 Scale2(__m256 x, __m256 n) {  // for n within the exponents of float32
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
}
inline V Scale2(V x, V n) { return {Scale2(x.a, n.a), Scale2(x.b, n.b)}; }
inline float SumAll(V x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float MaxAll(V x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline V KeepFirst(V x, int64_t n, V fill) {
  return {_mm256_blendv_ps(fill.a, x.a, _mm256_castsi256_ps(FirstN(n))),
          _mm256_blendv_ps(fill.b, x.b, _mm256_castsi256_ps(FirstN(n - 8)))};
}
inline void StoreInt8(V whole, int8_t* p) {
  // packs works within 128-bit halves: put the 64-bit groups back in order.
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(_mm256_cvtps_epi32(whole.a), _mm256_cvtps_epi32(whole.b)), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

inline __m256 SumEach8(const V* x) {
  __m256 eight[8];
  for (int i = 0; i < 8; ++i) eight[i] = _mm256_add_ps(x[i].a, x[i].b);
  __m256 four[2];
  for (int i = 0; i < 2; ++i) {
    four[i] = _mm256_hadd_ps(_mm256_hadd_ps(eight[4 * i], eight[4 * i + 1]),
                             _mm256_hadd_ps(eight[4 * i + 2], eight[4 * i + 3]));
  }
  return _mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                       _mm256_permute2f128_ps(four[0], four[1], 0x31));
}
inline V SumEach(const V (&x)[16]) { return {SumEach8(x), SumEach8(x + 8)}; }

struct Sums {
  __m256i a, b;
};
struct Bytes {
  __m256i a, b;
};
inline Sums ZeroSums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Sums operator+(Sums x, Sums y) {
  return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
inline V ToFloat(Sums x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Bytes LoadBytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline __m256i Broadcast4(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

#ifdef HEARTH_AVX_VNNI
// Weights stay shifted by 128, as unsigned bytes.
inline Sums StartSums(int32_t offset) {
  return {_mm256_set1_epi32(offset), _mm256_set1_epi32(offset)};
}
inline __m256i ToWeights(__m256i shifted) { return shifted; }
inline __m256i AddProducts(__m256i sums, __m256i weights, __m256i x) {
  return _mm256_dpbusd_avx_epi32(sums, weights, x);
}
#else
// maddubs adds two products in 16 bits: |w| <= 127 times |x| <= 127 twice just fits, shifted
// weights would not. So weights are signed here, and their signs move to the activations.
inline Sums StartSums(int32_t) { return ZeroSums(); }
inline __m256i ToWeights(__m256i shifted) {
  return _mm256_xor_si256(shifted, _mm256_set1_epi8(-128));
}
inline __m256i AddProducts(__m256i sums, __m256i weights, __m256i x) {
  const __m256i pairs =
      _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

struct Levels {
  __m256i v;
  explicit Levels(const uint8_t* levels)
      : v(ToWeights(_mm256_broadcastsi128_si256(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels))))) {}
};
inline __m256i LowHalves(__m256i codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
inline __m256i HighHalves(__m256i codes) { return LowHalves(_mm256_srli_epi16(codes, 4)); }
inline Bytes LowLevels(Bytes codes, const Levels& levels) {
  return {_mm256_shuffle_epi8(levels.v, LowHalves(codes.a)),
          _mm256_shuffle_epi8(levels.v, LowHalves(codes.b))};
}
inline Bytes HighLevels(Bytes codes, const Levels& levels) {
  return {_mm256_shuffle_epi8(levels.v, HighHalves(codes.a)),
          _mm256_shuffle_epi8(levels.v, HighHalves(codes.b))};
}
inline Bytes FromByteWeights(Bytes shifted) { return {ToWeights(shifted.a), ToWeights(shifted.b)}; }
inline Sums AddProducts(Sums sums, Bytes weights, const int8_t* x) {
  const __m256i four = Broadcast4(x);
  return {AddProducts(sums.a, weights.a, four), AddProducts(sums.b, weights.b, four)};
}

}  // namespace hearth::worker::HEARTH_ISA
