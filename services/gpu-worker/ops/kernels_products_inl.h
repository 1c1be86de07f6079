// Products of weights with activations: rounding to int8, tiles as integers, plain rows as floats.
// Part of kernels_inl.h.
#include <cstdint>

#include "services/gpu-worker/ops/kernels.h"

namespace hearth::worker::HEARTH_ISA {
namespace {

void Quantize(const float* x, int64_t n, int row, int n_rows, int8_t* q, BlockScale* scales) {
  for (int64_t b = 0; b < n / kBlock; ++b) {
    V v[4], largest = Zero();
    for (int j = 0; j < 4; ++j) {
      v[j] = Load(x + b * kBlock + j * kLanes);
      largest = Max(largest, Abs(v[j]));
    }
    const float top = MaxAll(largest);
    const float inverse = top > 0 ? 127 / top : 0;
    int8_t* to = q + (b * n_rows + row) * kBlock;
    V sum = Zero();
    for (int j = 0; j < 4; ++j) {
      const V whole = Round(v[j] * Set(inverse));
      sum = sum + whole;
      StoreInt8(whole, to + j * kLanes);
    }
    // Whole numbers far below 2^24: exact.
    scales[b * n_rows + row] = {top / 127, -128 * static_cast<int32_t>(SumAll(sum))};
  }
}

// Stages a block of 64 columns: start from the offset, 16 times 4 columns, then into float with
// the row's and the activations' scales. kSplit independent sums a row hide the latency of the
// products where there are few rows; whole numbers, so that the split changes nothing.
template <int kRows, bool kIs4Bit>
void Strip(const TiledMatrix& matrix, int64_t strip, const RowGroup& rows, float* out,
           int64_t stride) {
  constexpr int kSplit = kRows <= 2 ? 4 : kRows <= 4 ? 2 : 1;
  constexpr int kTileBytes = kIs4Bit ? 512 : 1024;
  // Ahead of the reads by four tiles: with few rows a strip is read once and at memory speed (2 to
  // 10 % on a Zen 5 server; 8 KB ahead are too many).
  constexpr int kAhead = 2048;
  const uint8_t* tile = matrix.data + strip * matrix.n_tiles * kTileBytes;
  const uint16_t* scales = matrix.scales + strip * matrix.n_tiles * kLanes;
  const int8_t* q = rows.q;
  const BlockScale* x_scales = rows.scales;
  const Levels levels(matrix.levels);
  V total[kRows];
  for (int t = 0; t < kRows; ++t) total[t] = Zero();
  for (int64_t b = 0; b < matrix.n_tiles; ++b) {
    Sums sums[kRows][kSplit];
    for (int t = 0; t < kRows; ++t) {
      sums[t][0] = StartSums(x_scales[t].offset);
      for (int s = 1; s < kSplit; ++s) sums[t][s] = ZeroSums();
    }
    if constexpr (kIs4Bit) {
#pragma GCC unroll 8
      for (int c = 0; c < 8; ++c) {
        if constexpr (kRows < kMaxGroup) __builtin_prefetch(tile + kAhead + c * 64);
        const Bytes codes = LoadBytes(tile + c * 64);
        const Bytes low = LowLevels(codes, levels), high = HighLevels(codes, levels);
        for (int t = 0; t < kRows; ++t) {
          Sums& first = sums[t][2 * c % kSplit];
          first = AddProducts(first, low, q + t * kBlock + 4 * c);
          Sums& second = sums[t][(2 * c + 1) % kSplit];
          second = AddProducts(second, high, q + t * kBlock + 32 + 4 * c);
        }
      }
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < 16; ++c) {
        const Bytes weights = FromByteWeights(LoadBytes(tile + c * 64));
        for (int t = 0; t < kRows; ++t) {
          Sums& sum = sums[t][c % kSplit];
          sum = AddProducts(sum, weights, q + t * kBlock + 4 * c);
        }
      }
    }
    const V scale = LoadF16(scales);
    for (int t = 0; t < kRows; ++t) {
      Sums sum = sums[t][0];
      for (int s = 1; s < kSplit; ++s) sum = sum + sums[t][s];
      total[t] = Fma(ToFloat(sum) * Set(x_scales[t].scale), scale, total[t]);
    }
    tile += kTileBytes;
    scales += kLanes;
    q += kRows * kBlock;
    x_scales += kRows;
  }
  for (int t = 0; t < kRows; ++t) Store(total[t] * Set(matrix.factor), out + t * stride);
}

template <bool kIs4Bit>
void AnyStrip(const TiledMatrix& matrix, int64_t strip, const RowGroup& rows, float* out,
              int64_t stride) {
  switch (rows.n_rows) {
    case 1:
      return Strip<1, kIs4Bit>(matrix, strip, rows, out, stride);
    case 2:
      return Strip<2, kIs4Bit>(matrix, strip, rows, out, stride);
    case 3:
      return Strip<3, kIs4Bit>(matrix, strip, rows, out, stride);
    case 4:
      return Strip<4, kIs4Bit>(matrix, strip, rows, out, stride);
    case 5:
      return Strip<5, kIs4Bit>(matrix, strip, rows, out, stride);
    case 6:
      return Strip<6, kIs4Bit>(matrix, strip, rows, out, stride);
    case 7:
      return Strip<7, kIs4Bit>(matrix, strip, rows, out, stride);
    default:
      return Strip<8, kIs4Bit>(matrix, strip, rows, out, stride);
  }
}

inline V LoadWeights(const float* p) { return Load(p); }
struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};
inline V LoadWeights(const F16* p) { return LoadF16(&p->bits); }
inline V LoadWeights(const BF16* p) { return LoadBf16(&p->bits); }

// kOut weight rows times kRows activation rows: each output has one vector of sums, whatever kOut
// and kRows are.
template <int kOut, int kRows, typename T>
inline void PlainTile(const T* weights, int64_t n, const float* x, int64_t x_stride, float* y,
                      int64_t y_stride) {
  V sums[kOut][kRows];
  for (int r = 0; r < kOut; ++r) {
    for (int t = 0; t < kRows; ++t) sums[r][t] = Zero();
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    V v[kRows];
    for (int t = 0; t < kRows; ++t) v[t] = Load(x + t * x_stride + i);
    for (int r = 0; r < kOut; ++r) {
      const V w = LoadWeights(weights + r * n + i);
      for (int t = 0; t < kRows; ++t) sums[r][t] = Fma(w, v[t], sums[r][t]);
    }
  }
  if (i < n) {
    for (int r = 0; r < kOut; ++r) {
      T rest[kLanes] = {};
      __builtin_memcpy(rest, weights + r * n + i, static_cast<size_t>(n - i) * sizeof(T));
      const V w = LoadWeights(rest);
      for (int t = 0; t < kRows; ++t) {
        sums[r][t] = Fma(w, LoadN(x + t * x_stride + i, n - i), sums[r][t]);
      }
    }
  }
  for (int r = 0; r < kOut; ++r) {
    for (int t = 0; t < kRows; ++t) y[t * y_stride + r] = SumAll(sums[r][t]);
  }
}

template <int kOut, typename T>
void PlainRows(const T* weights, int64_t n, const float* x, int64_t x_stride, int n_rows, float* y,
               int64_t y_stride) {
  int t = 0;
  for (; t + 4 <= n_rows; t += 4) {
    PlainTile<kOut, 4>(weights, n, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
  }
  for (; t < n_rows; ++t) {
    PlainTile<kOut, 1>(weights, n, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
  }
}

template <typename T>
void Plain(const void* data, int64_t n, int n_out, const float* x, int64_t x_stride, int n_rows,
           float* y, int64_t y_stride) {
  const T* weights = static_cast<const T*>(data);
  int r = 0;
  for (; r + 4 <= n_out; r += 4) {
    PlainRows<4>(weights + r * n, n, x, x_stride, n_rows, y + r, y_stride);
  }
  for (; r < n_out; ++r) {
    PlainRows<1>(weights + r * n, n, x, x_stride, n_rows, y + r, y_stride);
  }
}

}  // namespace
}  // namespace hearth::worker::HEARTH_ISA
