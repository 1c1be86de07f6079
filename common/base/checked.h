// Arithmetic on sizes that come from files and requests: nothing when it would overflow.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace hearth {

inline std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

// The product of all dimensions; 1 for a scalar (no dimensions).
inline std::optional<uint64_t> CheckedProduct(std::span<const uint64_t> dims) {
  std::optional<uint64_t> product = 1;
  for (const uint64_t dim : dims) {
    product = CheckedMul(*product, dim);
    if (!product) return std::nullopt;
  }
  return product;
}

// Rounds up to a multiple of `alignment`, a power of two.
inline std::optional<uint64_t> CheckedAlignUp(uint64_t value, uint64_t alignment) {
  const auto sum = CheckedAdd(value, alignment - 1);
  if (!sum) return std::nullopt;
  return *sum & ~(alignment - 1);
}

}  // namespace hearth
