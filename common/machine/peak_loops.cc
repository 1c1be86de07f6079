#include "common/machine/peak_loops.h"

#include <immintrin.h>

#include <cstring>

#include "common/machine/machine_info.h"

namespace hearth {
namespace {

constexpr int kRounds = 20'000;
constexpr size_t kChains = 12;  // independent sums: more than latency times units

// Keeps a value from being optimised away.
template <typename T>
void Keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

__attribute__((target("avx512f"))) uint64_t ReadAvx512(const std::byte* at, const std::byte* end) {
  __m512i sums[4] = {};
  for (; at < end; at += 512) {
    for (ptrdiff_t i = 0; i < 8; ++i) {
      sums[i % 4] = _mm512_add_epi64(sums[i % 4], _mm512_loadu_si512(at + 64 * i));
    }
  }
  const __m512i sum =
      _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3]));
  uint64_t parts[8];
  _mm512_storeu_si512(parts, sum);
  return parts[0] ^ parts[1] ^ parts[2] ^ parts[3] ^ parts[4] ^ parts[5] ^ parts[6] ^ parts[7];
}

__attribute__((target("avx2"))) uint64_t ReadAvx2(const std::byte* at, const std::byte* end) {
  __m256i sums[4] = {};
  for (; at < end; at += 256) {
    for (ptrdiff_t i = 0; i < 8; ++i) {
      const auto* from = reinterpret_cast<const __m256i*>(at + 32 * i);
      sums[i % 4] = _mm256_add_epi64(sums[i % 4], _mm256_loadu_si256(from));
    }
  }
  const __m256i sum =
      _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  uint64_t parts[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), sum);
  return parts[0] ^ parts[1] ^ parts[2] ^ parts[3];
}

uint64_t ReadPlain(const std::byte* at, const std::byte* end) {
  uint64_t sums[4] = {};
  for (; at < end; at += 32) {
    uint64_t words[4];
    std::memcpy(words, at, sizeof(words));
    for (int i = 0; i < 4; ++i) sums[i] += words[i];
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

}  // namespace

uint64_t ReadOnce(std::span<const std::byte> bytes) {
  const std::byte* begin = bytes.data();
  const std::byte* end = begin + bytes.size() / 512 * 512;
  if (ThisCpu().avx512) return ReadAvx512(begin, end);
  return ThisCpu().avx2 ? ReadAvx2(begin, end) : ReadPlain(begin, end);
}

__attribute__((target("avx512f"))) uint64_t Float32FmaAvx512() {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_set1_ps(1.F);
  const __m512 factor = _mm512_set1_ps(0.999F), term = _mm512_set1_ps(0.001F);
  for (int round = 0; round < kRounds; ++round) {
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, factor, term);
  }
  Keep(sums);
  return uint64_t{kRounds} * kChains * 16 * 2;
}

__attribute__((target("avx2,fma"))) uint64_t Float32FmaAvx2() {
  __m256 sums[kChains];
  for (__m256& sum : sums) sum = _mm256_set1_ps(1.F);
  const __m256 factor = _mm256_set1_ps(0.999F), term = _mm256_set1_ps(0.001F);
  for (int round = 0; round < kRounds; ++round) {
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, factor, term);
  }
  Keep(sums);
  return uint64_t{kRounds} * kChains * 8 * 2;
}

__attribute__((target("avx512f,avx512vnni"))) uint64_t Int8VnniAvx512() {
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
  for (int round = 0; round < kRounds; ++round) {
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  }
  Keep(sums);
  return uint64_t{kRounds} * kChains * 64 * 2;
}

__attribute__((target("avx2,avxvnni"))) uint64_t Int8VnniAvx2() {
  __m256i sums[kChains];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
  for (int round = 0; round < kRounds; ++round) {
    for (__m256i& sum : sums) sum = _mm256_dpbusd_avx_epi32(sum, a, b);
  }
  Keep(sums);
  return uint64_t{kRounds} * kChains * 32 * 2;
}

__attribute__((target("avx2"))) uint64_t Int8MaddAvx2() {
  __m256i sums[kChains];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(-5), ones = _mm256_set1_epi16(1);
  for (int round = 0; round < kRounds; ++round) {
    asm volatile("" : "+x"(a));  // else the products would be taken out of the loop
    for (__m256i& sum : sums) {
      asm volatile("" : "+x"(a));
      const __m256i pairs = _mm256_maddubs_epi16(a, b);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
  }
  Keep(sums);
  return uint64_t{kRounds} * kChains * 32 * 2;
}

__attribute__((target("amx-tile,amx-int8"))) uint64_t Int8Amx() {
  // Eight tiles of 16 rows of 64 bytes: four sums, two of either factor.
  alignas(64) uint8_t config[64] = {1};
  for (size_t tile = 0; tile < 8; ++tile) {
    config[16 + 2 * tile] = 64;
    config[48 + tile] = 16;
  }
  asm volatile("" ::"r"(config) : "memory");  // all of it is read, which the intrinsic doesn't say
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int round = 0; round < kRounds / 16; ++round) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return uint64_t{kRounds / 16} * 4 * 16 * 16 * 64 * 2;
}

}  // namespace hearth
