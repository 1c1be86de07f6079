// Conversions between float32 and the two 16-bit formats, by integer arithmetic: the same on every
// machine.
#include <bit>
#include <cstdint>

#include "common/tensor/linear.h"

namespace hearth {

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero or subnormal: exact
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

namespace {

// value / 2^shift, rounded to the nearest, ties to even.
uint32_t ShiftRoundEven(uint32_t value, uint32_t shift) {
  const uint32_t half = 1u << (shift - 1);
  const uint32_t rest = value & ((1u << shift) - 1);
  const uint32_t quotient = value >> shift;
  return quotient + ((rest > half || (rest == half && (quotient & 1u) != 0)) ? 1u : 0u);
}

}  // namespace

uint16_t F32ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  constexpr uint32_t kInfinity = 0x7f800000u;
  if (magnitude > kInfinity) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and above
  uint32_t half;
  if (magnitude >= 0x38800000u) {  // normal: a carry out of the mantissa raises the exponent
    half = ShiftRoundEven(magnitude - (112u << 23), 13);
  } else if (magnitude >= 0x33000000u) {  // subnormal: units of 2^-24
    const uint32_t exponent = magnitude >> 23;
    half = ShiftRoundEven((magnitude & 0x7fffffu) | 0x800000u, 126 - exponent);
  } else {
    half = 0;  // below half of the smallest subnormal
  }
  return static_cast<uint16_t>(sign | half);
}

float BF16ToF32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t F32ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace hearth
