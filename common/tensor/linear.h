// One linear layer's weights, wherever they lie (a checkpoint file, the expert segment, our own
// memory), and how to read them back as float32. This is the type that checkpoint, expert-store and
// the worker's ops share.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace hearth {

enum class WeightKind : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kBF16 = 2,
  kBlock4 = 3,  // NF4, FP4 or any other 16 levels: 4-bit codes, one absmax a block
  kTiled4 = 4,  // the same in the kernels' order (tiled.h)
  kTiled8 = 5,  // 8-bit integers in the kernels' order (tiled.h)
};

// A borrowed matrix [out, in], row-major; y = W x maps `in` values to `out`.
//   kF32, kF16, kBF16: `data` holds out * in values.
//   kBlock4: `data` holds ceil(out * in / 2) bytes, the earlier element in the high half; blocks of
//   `block_size` consecutive elements of the flattened matrix (they may straddle rows) share
//   absmax[element / block_size]; w = levels[code] * absmax.
//   kTiled4, kTiled8: see tiled.h; `data` and `scales` at multiples of 64 bytes.
struct LinearRef {
  WeightKind kind = WeightKind::kF32;
  int64_t out = 0;
  int64_t in = 0;
  const void* data = nullptr;
  const float* absmax = nullptr;      // kBlock4: ceil(out * in / block_size) values
  int32_t block_size = 64;            // kBlock4
  std::array<float, 16> levels = {};  // kBlock4, kTiled4
  const uint16_t* scales = nullptr;   // kTiled4, kTiled8: f16, one a row and 64 columns
  float factor = 1;                   // kTiled4, kTiled8: on all scales
};

// bitsandbytes' tables, for tests and synthetic models; a checkpoint's own quant_map decides where
// there is one.
extern const std::array<float, 16> kNf4Levels;
extern const std::array<float, 16> kFp4Levels;

float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);  // round to nearest even
float BF16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);  // round to nearest even; NaN stays NaN

// Row `row` of W as float32; `values` has `in` elements.
void DequantizeRow(const LinearRef& weights, int64_t row, std::span<float> values);

// Bytes that `data` and `absmax` (or `scales`) of such a matrix take, without padding between them.
struct LinearBytes {
  uint64_t data;
  uint64_t absmax;
};
LinearBytes BytesOf(const LinearRef& weights);

// One expert's three matrices: gate and up [F, D], down [D, F].
struct ExpertRef {
  LinearRef gate;
  LinearRef up;
  LinearRef down;
};

}  // namespace hearth
