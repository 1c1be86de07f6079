// The inner loops of the fast CPU backend, one table of them for each instruction set. Chosen at
// run time by what the CPU has; every table computes the same numbers, but for the order in which
// sums are taken.
//
// Thread-safe: pure functions over the caller's memory. Nothing here allocates.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "common/tensor/linear.h"

namespace hearth::worker {

// One row's share of a block of 64 activations: x = q * scale, and -128 times the sum of the q,
// which takes back the 128 by which the weights' bytes are shifted.
struct BlockScale {
  float scale;
  int32_t offset;
};

// Up to kMaxGroup rows of activations as int8, block by block: q [n_blocks, n_rows, 64], scales
// [n_blocks, n_rows].
struct RowGroup {
  const int8_t* q = nullptr;
  const BlockScale* scales = nullptr;
  int n_rows = 0;
};
inline constexpr int kMaxGroup = 8;
inline constexpr int kBlock = 64;

// A tiled matrix (common/tensor/tiled.h) as the kernels want it.
struct TiledMatrix {
  const uint8_t* data = nullptr;
  const uint16_t* scales = nullptr;
  int64_t n_tiles = 0;      // of a strip
  uint8_t levels[16] = {};  // kTiled4: 128 + the integer level of each code
  float factor = 1;         // on every output
};

// Queries of one key/value head at one position: q [n, head_dim] rows `stride` apart.
struct AttentionRow {
  const float* q;
  int n_queries;
  int head_dim;
  float scale;
};

struct Kernels {
  std::string_view name;

  // Rounds `n` (a multiple of 64) values to int8 with one scale a block, as row `row` of a group of
  // n_rows.
  void (*quantize)(const float* x, int64_t n, int row, int n_rows, int8_t* q, BlockScale* scales);
  // out[t * stride + r] = the products of a strip's 16 rows with each row of the group.
  void (*tiled4)(const TiledMatrix& matrix, int64_t strip, const RowGroup& rows, float* out,
                 int64_t stride);
  void (*tiled8)(const TiledMatrix& matrix, int64_t strip, const RowGroup& rows, float* out,
                 int64_t stride);
  // y[t * y_stride + r] = sum over i of weights[r * n + i] x[t * x_stride + i], r < n_out.
  using Plain = void (*)(const void* weights, int64_t n, int n_out, const float* x,
                         int64_t x_stride, int n_rows, float* y, int64_t y_stride);
  Plain plain_f32, plain_f16, plain_bf16;

  // x += delta (unless null); h = x / sqrt(mean(x^2) + eps) * (1 + weight).
  void (*add_rms_norm)(float* x, const float* delta, const float* weight, float eps, int64_t n,
                       float* h);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  // y += a x.
  void (*add_scaled)(float a, const float* x, int64_t n, float* y);
  // y *= sigmoid(gate), y /= sum.
  void (*gate_and_divide)(const float* gate, float sum, int64_t n, float* y);
  // Causal convolution of one token: rows[w] [n] oldest first, kernel [width, stride]; SiLU.
  void (*convolve)(const float* const* rows, const float* kernel, int64_t stride, int width,
                   int64_t n, float* out);
  // to = from / sqrt(sum of squares + eps) * scale.
  void (*l2_normalize)(const float* from, int64_t n, float eps, float scale, float* to);
  // Columns [0, n_columns) of one value head's state [dk, state_stride] over n_rows tokens:
  // q, k rows qk_stride apart, v and out rows v_stride and out_stride apart, gates decay and beta
  // gate_stride apart. n_columns is 32 or 16.
  struct DeltaArgs {
    int n_rows, dk, n_columns;
    const float *q, *k;
    int64_t qk_stride;
    const float* v;
    int64_t v_stride;
    const float *decay, *beta;
    int64_t gate_stride;
    float* state;
    int64_t state_stride;
    float* out;
    int64_t out_stride;
  };
  void (*delta_rule)(const DeltaArgs& args);
  // out = norm * out / sqrt(mean(out^2) + eps) * silu(z).
  void (*gated_norm)(const float* norm, const float* z, float eps, int64_t n, float* out);
  // The k largest of x, by falling value, ties to the lower index; k <= n. `scratch` holds n
  // rounded up to 16, and a 16th of that more.
  void (*top_k)(const float* x, int64_t n, int k, float* scratch, int32_t* ids);
  // scores[i] = exp(logits[i] - largest); returns their sum.
  float (*softmax_terms)(const float* logits, int64_t n, float* largest, float* terms);
  // One page or a part of it: n <= 16 positions, keys and values [n, head_dim] rows `stride` apart.
  // Online softmax: largest, sum [n_queries] and acc [n_queries, head_dim] go on.
  void (*attend_page)(const AttentionRow& row, int n, const float* keys, const float* values,
                      int64_t stride, float* largest, float* sum, float* acc);
};

// What this CPU and operating system can run, best first; at least one wherever the product runs.
// Names: "avx512" (AVX-512 with VNNI and VBMI), "avxvnni" (AVX2 with AVX-VNNI), "avx2", and last
// "amx" (AVX-512, and AMX-INT8 tiles for groups of 4 to 8 rows): only where it is asked for, since
// it measured slower than AVX-512 (docs/numbers/cpu.md).
std::vector<const Kernels*> UsableKernels();
// The best, or the one of that name; nothing where the CPU lacks it.
const Kernels* FindKernels(std::string_view name);

}  // namespace hearth::worker
