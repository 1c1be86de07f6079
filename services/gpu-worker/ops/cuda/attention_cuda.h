// Gated full attention over KV pages, on the device: everything between q_proj / k_proj / v_proj
// and o_proj.
//
// Rows are those of S sequences with n rows each, as sequence_rows.h says. Positions are read from
// device memory, so that one captured graph serves every step; a negative position is an idle row,
// whose outputs are not written.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/sequence_rows.h"
#include "services/gpu-worker/ops/shapes.h"

namespace hearth::worker {

enum class KvType { kF32, kBf16 };

// Keys and values of one layer: pools of pages [page_tokens, G, d] each, 16-byte aligned. Position
// p of sequence s lies in page table[s, p / page_tokens] of both pools.
struct DeviceKv {
  KvType type = KvType::kF32;
  void* keys = nullptr;
  void* values = nullptr;
  const int32_t* table = nullptr;  // [S, max_pages], device; valid up to the largest position
  int max_pages = 0;
  int page_tokens = 0;
};

struct DeviceRotary {
  const double* inverse_frequencies = nullptr;  // [half], device
  int half = 0;                                 // r / 2
  double scale = 1;
};

// Norms of q and k with weight 1 + w, rotary, and the store of k and v.
//
//   query_gate  [S n, H, 2 d]  float, q_proj's output: query | gate of each head
//   k, v        [S n, G, d]    float, k_proj's and v_proj's outputs
//   positions   [S n]          int64, device
//   q_norm, k_norm  [d]        float
//   q           [S n, H, d]    float
//
// The gates stay in query_gate. Values in bf16 pages are rounded to nearest even. Requires d <= 256
// and 2 half <= d. One warp owns one head of a row. Bytes: 4 S n d (2 H + 2 G) + the pages' 2 S n G
// d values.
struct RotaryNorms {
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float eps = 0;
};
cudaError_t RotateAndStoreCuda(const AttentionShape& shape, const SequenceRows& rows,
                               const RotaryNorms& norms, const DeviceRotary& rotary,
                               const int64_t* positions, const float* query_gate, const float* k,
                               const float* v, const DeviceKv& kv, float* q, cudaStream_t stream);

// out = softmax(q k^T / sqrt(d)) v * sigmoid(gate), each row over all positions up to its own.
//
//   q, query_gate, positions  as above
//   scratch  AttentionScratchFloats() floats, 16-byte aligned
//   out      [S n, H, d]  float
//
// Flash decoding: a row's positions are cut into stretches whose length depends on its position
// alone (StretchOf), each is summed by one block a key/value head (8 queries of it), and a second
// launch adds the stretches in order and gates. So a row's result does not depend on S or n.
// `max_positions` bounds the positions (exclusive) that the launch can serve: it sizes the grid and
// the scratch. Requires d in {32, 64, 128, 256}. Bytes a row: 2 G d values of each position, and
// 8 H (d + 2) a stretch, at most kMaxStretches of them; operations: 4 H d a position.
inline constexpr int kFirstStretch = 64;
inline constexpr int kMaxStretches = 128;

// Positions that one block sums, for a row that sees `n` positions.
__host__ __device__ constexpr int64_t StretchOf(int64_t n) {
  int64_t stretch = kFirstStretch;
  while (stretch * kMaxStretches < n) stretch *= 2;
  return stretch;
}

int64_t AttentionScratchFloats(const AttentionShape& shape, int n_rows, int64_t max_positions);
cudaError_t AttentionCuda(const AttentionShape& shape, const SequenceRows& rows,
                          const int64_t* positions, int64_t max_positions, const float* q,
                          const float* query_gate, const DeviceKv& kv, float* scratch, float* out,
                          cudaStream_t stream);

}  // namespace hearth::worker
