// The 16 levels of 4-bit weights as the integer kernels look them up: eight magnitudes a half of
// the codes, in two registers each. A byte permutation picks four at a time by the codes' low bits
// and gives zero where bit 3 says that the other half is meant, which is why each half has one
// sign.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace hearth::worker {

// level[code] is nearly (high[code - 8] - low[code]) / scale, the absent one zero: the integers of
// RoundLevels (common/tensor/tiled.h).
struct DecodeLevels {
  uint32_t low[2] = {};   // of codes 0 to 7, one a byte
  uint32_t high[2] = {};  // of codes 8 to 15
  float scale = 1;        // negative where the first half are the positive ones (FP4)
};

// Nothing where a half of the levels has both signs, or both halves the same: the float32 kernels
// take any levels. Not quick: once a model.
std::optional<DecodeLevels> MakeDecodeLevels(const std::array<float, 16>& levels);

}  // namespace hearth::worker
