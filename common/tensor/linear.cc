#include "common/tensor/linear.h"

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/tensor/tiled.h"

namespace hearth {

const std::array<float, 16> kNf4Levels = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

const std::array<float, 16> kFp4Levels = {
    0.0f,  0.0052083333f,  0.66666667f,  1.0f,  0.33333333f,  0.5f,  0.16666667f,  0.25f,
    -0.0f, -0.0052083333f, -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f,
};

namespace {

// Bytes come from files, where nothing promises alignment: memcpy, which compiles to a plain load.
template <typename T>
T LoadAt(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(data) + index * sizeof(T), sizeof(T));
  return value;
}

void DequantizeBlock4(const LinearRef& weights, int64_t first, std::span<float> values) {
  const auto* codes = static_cast<const uint8_t*>(weights.data);
  const int64_t block_size = weights.block_size;
  const int64_t n = static_cast<int64_t>(values.size());
  int64_t i = 0;
  while (i < n) {  // one block, or what of it lies in this row, a turn
    const int64_t block = (first + i) / block_size;
    const int64_t end = std::min(n, (block + 1) * block_size - first);
    const float scale = weights.absmax[block];
    for (; i < end; ++i) {
      const int64_t element = first + i;
      const uint8_t pair = codes[element / 2];
      const int code = element % 2 == 0 ? pair >> 4 : pair & 15;
      values[i] = weights.levels[code] * scale;
    }
  }
}

void DequantizeTiled(const LinearRef& weights, int64_t row, std::span<float> values) {
  const int64_t n_tiles = weights.in / kTileColumns, strip = row / kTileRows, r = row % kTileRows;
  const auto* data = static_cast<const uint8_t*>(weights.data);
  for (int64_t t = 0; t < n_tiles; ++t) {
    const int64_t tile = strip * n_tiles + t;
    const float scale = F16ToF32(weights.scales[tile * kTileRows + r]) * weights.factor;
    float* to = values.data() + t * kTileColumns;
    for (int i = 0; i < kTileColumns; ++i) {
      if (weights.kind == WeightKind::kTiled4) {
        const int half = i / 32, column = i % 32;
        const uint8_t pair = data[tile * kTile4Bytes + column / 4 * 64 + r * 4 + column % 4];
        to[i] = weights.levels[half == 0 ? pair & 15 : pair >> 4] * scale;
      } else {
        to[i] =
            static_cast<float>(data[tile * kTile8Bytes + i / 4 * 64 + r * 4 + i % 4] - 128) * scale;
      }
    }
  }
}

}  // namespace

void DequantizeRow(const LinearRef& weights, int64_t row, std::span<float> values) {
  HEARTH_CHECK(row >= 0 && row < weights.out);
  HEARTH_CHECK(static_cast<int64_t>(values.size()) == weights.in);
  const int64_t first = row * weights.in;
  const int64_t n = weights.in;
  switch (weights.kind) {
    case WeightKind::kF32:
      for (int64_t i = 0; i < n; ++i) values[i] = LoadAt<float>(weights.data, first + i);
      return;
    case WeightKind::kF16:
      for (int64_t i = 0; i < n; ++i) {
        values[i] = F16ToF32(LoadAt<uint16_t>(weights.data, first + i));
      }
      return;
    case WeightKind::kBF16:
      for (int64_t i = 0; i < n; ++i) {
        values[i] = BF16ToF32(LoadAt<uint16_t>(weights.data, first + i));
      }
      return;
    case WeightKind::kBlock4:
      return DequantizeBlock4(weights, first, values);
    case WeightKind::kTiled4:
    case WeightKind::kTiled8:
      return DequantizeTiled(weights, row, values);
  }
  HEARTH_CHECK(false);  // a kind that no constructor of ours makes
}

LinearBytes BytesOf(const LinearRef& weights) {
  const uint64_t n = static_cast<uint64_t>(weights.out) * static_cast<uint64_t>(weights.in);
  switch (weights.kind) {
    case WeightKind::kF32:
      return {.data = n * 4, .absmax = 0};
    case WeightKind::kF16:
    case WeightKind::kBF16:
      return {.data = n * 2, .absmax = 0};
    case WeightKind::kBlock4: {
      const uint64_t block_size = static_cast<uint64_t>(weights.block_size);
      const uint64_t n_blocks = n / block_size + (n % block_size != 0 ? 1 : 0);
      return {.data = n / 2 + n % 2, .absmax = n_blocks * sizeof(float)};
    }
    case WeightKind::kTiled4:
    case WeightKind::kTiled8: {
      const uint64_t n_tiles = static_cast<uint64_t>(TileStrips(weights)) *
                               (static_cast<uint64_t>(weights.in) / kTileColumns);
      const uint64_t tile = weights.kind == WeightKind::kTiled4 ? kTile4Bytes : kTile8Bytes;
      return {.data = n_tiles * tile, .absmax = n_tiles * kTileRows * sizeof(uint16_t)};
    }
  }
  HEARTH_CHECK(false);
}

}  // namespace hearth
