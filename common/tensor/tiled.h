// Weights in the order in which the kernels read them: tiles of 16 rows by 64 columns, so that one
// vector register holds four consecutive columns of 16 rows, and 16 outputs grow side by side.
//
// A matrix [out, in] becomes ceil(out / 16) strips of in / 64 tiles; missing rows are zero. The
// strips follow each other, and the tiles of a strip.
//
//   kTiled4, 512 bytes a tile: byte c * 64 + r * 4 + j (c < 8, r < 16, j < 4) holds row r's code of
//   column 4 c + j in its low half and of column 32 + 4 c + j in its high half. w = levels[code] *
//   scale.
//
//   kTiled8, 1024 bytes a tile: byte c * 64 + r * 4 + j (c < 16) is 128 + the integer of row r and
//   column 4 c + j, in [-127, 127]. w = integer * scale.
//
// The scale of row r of a tile is F16ToF32(scales[tile * 16 + r]) * factor; `factor` is a power of
// two that keeps the largest scale of the matrix in the upper half of f16's range, so that
// scales are rounded by at most 2^-11 of themselves.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "common/tensor/linear.h"

namespace hearth {

inline constexpr int kTileRows = 16;
inline constexpr int kTileColumns = 64;
inline constexpr int kTile4Bytes = kTileRows * kTileColumns / 2;
inline constexpr int kTile8Bytes = kTileRows * kTileColumns;

inline int64_t TileStrips(const LinearRef& weights) {
  return (weights.out + kTileRows - 1) / kTileRows;
}

// 4-bit weights can be tiled where every scale covers whole tiles' rows: no block straddles rows,
// and blocks are multiples of 64. Anything whose rows are multiples of 64 can be rounded to 8 bits.
bool CanTile4(const LinearRef& plain);
bool CanTile8(const LinearRef& plain);

// What the tiled matrix will be: kind, shape and levels, without places. Requires CanTile4 or 8.
LinearRef Tiled4Form(const LinearRef& plain);
LinearRef Tiled8Form(const LinearRef& plain);

// Fill BytesOf(form).data bytes and BytesOf(form).absmax bytes of scales; return the factor. Tile8
// rounds to the nearest of 255 values, the largest of 64 columns of a row being one of them.
float Tile4(const LinearRef& plain, void* data, uint16_t* scales);
float Tile8(const LinearRef& plain, void* data, uint16_t* scales);

// The 16 levels as integers: level is nearly integers[code] / scale. The scale is that one of
// [64, 127] / largest level which rounds best (112.03 for NF4: an error of 0.0017 of absmax, a
// twentieth of NF4's own).
struct IntegerLevels {
  std::array<int8_t, 16> integers = {};
  float scale = 1;
};
IntegerLevels RoundLevels(const std::array<float, 16>& levels);

}  // namespace hearth
