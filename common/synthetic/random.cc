#include "common/synthetic/random.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "common/tensor/linear.h"

namespace hearth {
namespace {

constexpr size_t kQuantiles = 4096;

double NormalCdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

// The middle of each of kQuantiles equally likely parts of the normal distribution.
std::array<float, kQuantiles> MakeQuantiles() {
  std::array<float, kQuantiles> quantiles{};
  for (size_t i = 0; i < kQuantiles; ++i) {
    const double share = (static_cast<double>(i) + 0.5) / kQuantiles;
    double low = -8, high = 8;
    for (int step = 0; step < 60; ++step) {
      const double middle = (low + high) / 2;
      (NormalCdf(middle) < share ? low : high) = middle;
    }
    quantiles[i] = static_cast<float>(low);
  }
  return quantiles;
}

}  // namespace

uint64_t StreamOf(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
  return RandomWord(hash, RandomWord(seed, hash));
}

void FillRandomBytes(uint64_t stream, uint64_t offset, std::span<std::byte> bytes) {
  uint64_t counter = offset / 8;
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = RandomWord(stream, counter++);
    std::memcpy(bytes.data() + i, &word, 8);
  }
  const uint64_t word = RandomWord(stream, counter);
  std::memcpy(bytes.data() + i, &word, bytes.size() - i);
}

void FillNormalBf16(uint64_t stream, uint64_t first, float mean, float deviation,
                    std::span<std::byte> bytes) {
  static const std::array<float, kQuantiles> quantiles = MakeQuantiles();
  std::array<uint16_t, kQuantiles> table;
  for (size_t i = 0; i < kQuantiles; ++i) table[i] = F32ToBF16(mean + deviation * quantiles[i]);
  const size_t n = bytes.size() / sizeof(uint16_t);
  for (size_t i = 0; i < n; i += 4) {
    uint64_t word = RandomWord(stream, (first + i) / 4);
    uint16_t values[4];
    for (uint16_t& value : values) {
      value = table[word % kQuantiles];
      word >>= 16;
    }
    std::memcpy(bytes.data() + i * sizeof(uint16_t), values,
                std::min<size_t>(4, n - i) * sizeof(uint16_t));
  }
}

void FillRandomFloats(uint64_t stream, float deviation, std::span<float> values) {
  const float factor = deviation * std::sqrt(3.F) / static_cast<float>(1U << 31);
  for (size_t i = 0; i < values.size(); i += 2) {
    const uint64_t word = RandomWord(stream, i / 2);
    values[i] = static_cast<float>(static_cast<int32_t>(word)) * factor;
    if (i + 1 < values.size()) {
      values[i + 1] = static_cast<float>(static_cast<int32_t>(word >> 32)) * factor;
    }
  }
}

}  // namespace hearth
