#include "common/tensor/tiled.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>

#include "common/base/check.h"

namespace hearth {
namespace {

// The power of two by which the largest magnitude comes to lie in [2^14, 2^15).
float FactorFor(float largest) {
  if (!(largest > 0) || !std::isfinite(largest)) return 1;
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest = m * 2^exponent, m in [0.5, 1)
  return std::ldexp(1.f, std::clamp(exponent - 15, -126, 126));
}

using Bytes16 = uint8_t __attribute__((vector_size(16)));
using Words4 = uint32_t __attribute__((vector_size(16)));

Bytes16 LoadBytes(const uint8_t* at) {
  Bytes16 bytes;
  std::memcpy(&bytes, at, sizeof bytes);
  return bytes;
}

// One row's 64 columns into a tile: bitsandbytes keeps pairs of columns in a byte, the earlier in
// the high half; a tile keeps columns that are 32 apart, the earlier in the low half. Vectors of
// the compiler's, so that every CPU runs the same instructions: loading passes all weights here.
void InterleaveRow(const uint8_t* pairs, uint8_t* tile_row) {
  const Bytes16 first = LoadBytes(pairs), last = LoadBytes(pairs + 16);
  const Bytes16 even = (first >> 4) | (last & 0xf0);  // of the row's 32 bytes
  const Bytes16 odd = (first & 0x0f) | (last << 4);
  const Bytes16 halves[2] = {
      __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
      __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                              31)};
  for (int half = 0; half < 2; ++half) {
    const Words4 words = std::bit_cast<Words4>(halves[half]);
    for (int c = 0; c < 4; ++c) {
      const uint32_t word = words[c];
      std::memcpy(tile_row + (4 * half + c) * 64, &word, sizeof word);
    }
  }
}

float LargestMagnitude(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

LinearRef TiledForm(const LinearRef& plain, WeightKind kind) {
  LinearRef form;
  form.kind = kind;
  form.out = plain.out;
  form.in = plain.in;
  form.block_size = kTileColumns;
  if (kind == WeightKind::kTiled4) form.levels = plain.levels;
  return form;
}

// One row's 64 columns as integers at `to`, 4 bytes a chunk of 64; returns the scale.
float RoundTo8(const float* values, float factor, uint8_t* to, uint16_t* half) {
  const float largest = LargestMagnitude({values, kTileColumns});
  *half = F32ToF16(largest / 127 / factor);
  const float scale = F16ToF32(*half) * factor;
  for (int i = 0; i < kTileColumns; ++i) {
    const float rounded = scale > 0 ? std::nearbyint(values[i] / scale) : 0;
    to[i / 4 * 64 + i % 4] = static_cast<uint8_t>(128 + std::clamp(rounded, -127.f, 127.f));
  }
  return scale;
}

}  // namespace

bool CanTile4(const LinearRef& plain) {
  return plain.kind == WeightKind::kBlock4 && plain.block_size % kTileColumns == 0 &&
         plain.in % plain.block_size == 0;
}

bool CanTile8(const LinearRef& plain) {
  return plain.kind != WeightKind::kTiled4 && plain.kind != WeightKind::kTiled8 &&
         plain.in % kTileColumns == 0;
}

LinearRef Tiled4Form(const LinearRef& plain) { return TiledForm(plain, WeightKind::kTiled4); }
LinearRef Tiled8Form(const LinearRef& plain) { return TiledForm(plain, WeightKind::kTiled8); }

float Tile4(const LinearRef& plain, void* data, uint16_t* scales) {
  HEARTH_CHECK(CanTile4(plain));
  const int64_t n_tiles = plain.in / kTileColumns, per_block = plain.block_size / kTileColumns;
  const auto* codes = static_cast<const uint8_t*>(plain.data);
  auto* tiles = static_cast<uint8_t*>(data);
  const float factor =
      FactorFor(LargestMagnitude({plain.absmax, static_cast<size_t>(BytesOf(plain).absmax / 4)}));
  const float inverse = 1 / factor;  // powers of two both: exact
  const int64_t n_strips = TileStrips(plain);
  for (int64_t strip = 0; strip < n_strips; ++strip) {
    const int64_t first = strip * kTileRows,
                  n_rows = std::min<int64_t>(kTileRows, plain.out - first);
    for (int64_t t = 0; t < n_tiles; ++t) {
      uint8_t* tile = tiles + (strip * n_tiles + t) * kTile4Bytes;
      uint16_t* tile_scales = scales + (strip * n_tiles + t) * kTileRows;
      if (n_rows < kTileRows) {
        std::memset(tile, 0, kTile4Bytes);
        std::memset(tile_scales, 0, kTileRows * sizeof(uint16_t));
      }
      for (int64_t r = 0; r < n_rows; ++r) {
        InterleaveRow(codes + ((first + r) * plain.in + t * kTileColumns) / 2, tile + r * 4);
        tile_scales[r] =
            F32ToF16(plain.absmax[(first + r) * (n_tiles / per_block) + t / per_block] * inverse);
      }
    }
  }
  return factor;
}

float Tile8(const LinearRef& plain, void* data, uint16_t* scales) {
  HEARTH_CHECK(CanTile8(plain));
  const int64_t n_tiles = plain.in / kTileColumns, n_strips = TileStrips(plain);
  std::vector<float> row(static_cast<size_t>(plain.in));
  float largest = 0;
  for (int64_t r = 0; r < plain.out; ++r) {
    DequantizeRow(plain, r, row);
    largest = std::max(largest, LargestMagnitude(row));
  }
  const float factor = FactorFor(largest / 127);
  auto* tiles = static_cast<uint8_t*>(data);
  for (int64_t strip = 0; strip < n_strips; ++strip) {
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t at = strip * kTileRows + r;
      if (at < plain.out) {
        DequantizeRow(plain, at, row);
      } else {
        std::fill(row.begin(), row.end(), 0.f);
      }
      for (int64_t t = 0; t < n_tiles; ++t) {
        const int64_t tile = strip * n_tiles + t;
        RoundTo8(row.data() + t * kTileColumns, factor, tiles + tile * kTile8Bytes + r * 4,
                 scales + tile * kTileRows + r);
      }
    }
  }
  return factor;
}

IntegerLevels RoundLevels(const std::array<float, 16>& levels) {
  const float largest = LargestMagnitude(levels);
  IntegerLevels best;
  if (!(largest > 0)) return best;
  double best_error = HUGE_VAL;
  for (int step = 6400; step <= 12700; ++step) {
    const double scale = step / 100.0 / largest;
    double error = 0;
    for (const float level : levels) {
      const double difference = std::nearbyint(level * scale) / scale - level;
      error += difference * difference;
    }
    if (error >= best_error) continue;
    best_error = error;
    best.scale = static_cast<float>(scale);
  }
  for (size_t i = 0; i < levels.size(); ++i) {
    best.integers[i] = static_cast<int8_t>(std::nearbyint(levels[i] * double{best.scale}));
  }
  return best;
}

}  // namespace hearth
