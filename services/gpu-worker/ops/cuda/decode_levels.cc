#include "services/gpu-worker/ops/cuda/decode_levels.h"

#include <cstdlib>

#include "common/tensor/tiled.h"

namespace hearth::worker {

std::optional<DecodeLevels> MakeDecodeLevels(const std::array<float, 16>& levels) {
  const IntegerLevels rounded = RoundLevels(levels);
  bool low_has[2] = {}, high_has[2] = {};  // a positive one, a negative one
  DecodeLevels to;
  for (int code = 0; code < 16; ++code) {
    const int8_t level = rounded.integers[static_cast<size_t>(code)];
    bool(&has)[2] = code < 8 ? low_has : high_has;
    has[0] |= level > 0;
    has[1] |= level < 0;
    uint32_t(&half)[2] = code < 8 ? to.low : to.high;
    half[code % 8 / 4] |= static_cast<uint32_t>(std::abs(level)) << (code % 4 * 8);
  }
  if (!low_has[0] && !high_has[1]) {
    to.scale = rounded.scale;
  } else if (!low_has[1] && !high_has[0]) {
    to.scale = -rounded.scale;
  } else {
    return std::nullopt;
  }
  return to;
}

}  // namespace hearth::worker
