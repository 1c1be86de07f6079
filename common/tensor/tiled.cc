#include "common/tensor/tiled.h"

#include <algorithm>
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

// Rows of one strip, in column order: 32 bytes of codes a row and tile, low half the earlier
// columns. bitsandbytes keeps the earlier element in the high half.
void InterleaveCodes(const uint8_t* pairs, uint8_t* row_bytes) {
  uint8_t codes[kTileColumns];
  for (int i = 0; i < kTileColumns / 2; ++i) {
    codes[2 * i] = pairs[i] >> 4;
    codes[2 * i + 1] = pairs[i] & 15;
  }
  for (int i = 0; i < kTileColumns / 2; ++i) {
    row_bytes[i] = static_cast<uint8_t>(codes[i] | codes[i + kTileColumns / 2] << 4);
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
  const int64_t n_strips = TileStrips(plain);
  for (int64_t strip = 0; strip < n_strips; ++strip) {
    for (int64_t t = 0; t < n_tiles; ++t) {
      uint8_t* tile = tiles + (strip * n_tiles + t) * kTile4Bytes;
      uint16_t* tile_scales = scales + (strip * n_tiles + t) * kTileRows;
      for (int r = 0; r < kTileRows; ++r) {
        const int64_t row = strip * kTileRows + r;
        uint8_t bytes[kTileColumns / 2] = {};
        tile_scales[r] = 0;
        if (row < plain.out) {
          InterleaveCodes(codes + (row * plain.in + t * kTileColumns) / 2, bytes);
          tile_scales[r] =
              F32ToF16(plain.absmax[row * (n_tiles / per_block) + t / per_block] / factor);
        }
        for (int c = 0; c < 8; ++c) std::memcpy(tile + c * 64 + r * 4, bytes + 4 * c, 4);
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
