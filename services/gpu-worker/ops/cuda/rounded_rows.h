// Rows of activations as int8, a block of 64 with one scale each, as kernels hand them to the
// integer kernels behind them. Plain.
#pragma once

#include <cstdint>

namespace hearth::worker {

// x of row r and column i is q * scales[r, i / 64], |q| <= 127 and scale = max|x| / 127. Words are
// in the order of mma_tile.cuh for 4-bit weights. In device memory, both at multiples of 16 bytes.
struct RoundedRows {
  uint32_t* words = nullptr;  // [n_rows, width / 4]
  float* scales = nullptr;    // [n_rows, width / 64]
};

}  // namespace hearth::worker
