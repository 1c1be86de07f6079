// Gated full attention over KV pages, on the device: everything between q_proj / k_proj / v_proj
// and o_proj.
//
// Rows are those of S sequences with n rows each, as sequence_rows.h says. Positions are read from
// device memory, so that one captured graph serves every step; a negative position is an idle row,
// whose outputs are not written.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/rounded_rows.h"
#include "services/gpu-worker/ops/cuda/sequence_rows.h"
#include "services/gpu-worker/ops/shapes.h"

namespace hearth::worker {

enum class KvType { kF32, kBf16, kInt8 };

// Keys and values of one layer: pools of pages [page_tokens, G, d] each, 16-byte aligned. Position
// p of sequence s lies in page table[s, p / page_tokens] of both pools.
//
// kInt8: a head's d values of a position are whole numbers times one scale, max|x| / 127, in a pool
// of its own beside the values', [page_tokens, G] a page. (d + 4) bytes instead of 2 d: 3.27 GB for
// 262,144 positions of 12 layers with G = 2 and d = 256. Not fp8: e4m3's three bits of mantissa
// lose more of what attention gives than a common scale does, even where single values are ten
// times the others' size (Int8LosesLessThanFp8 in attention_cuda_test.cc).
struct DeviceKv {
  KvType type = KvType::kF32;
  void* keys = nullptr;
  void* values = nullptr;
  const int32_t* table = nullptr;  // [S, max_pages], device; valid up to the largest position
  int max_pages = 0;
  int page_tokens = 0;
  float* key_scales = nullptr;  // kInt8
  float* value_scales = nullptr;
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
// The gates stay in query_gate. Values in bf16 and int8 pages are rounded to nearest even. Requires
// d <= 256 and 2 half <= d. One warp owns one head of a row. Bytes: 4 S n d (2 H + 2 G) + the
// pages' 2 S n G d values.
struct RotaryNorms {
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float eps = 0;
};
cudaError_t RotateAndStoreCuda(const AttentionShape& shape, const SequenceRows& rows,
                               const RotaryNorms& norms, const DeviceRotary& rotary,
                               const int64_t* positions, const float* query_gate, const float* k,
                               const float* v, const DeviceKv& kv, float* q, cudaStream_t stream);

// k and v alone, as if each row stood one position earlier; rows at position 0 are left out like
// idle ones. norms.q_norm is not read.
cudaError_t StoreOneBeforeCuda(const AttentionShape& shape, const SequenceRows& rows,
                               const RotaryNorms& norms, const DeviceRotary& rotary,
                               const int64_t* positions, const float* k, const float* v,
                               const DeviceKv& kv, cudaStream_t stream);

// out = softmax(q k^T / sqrt(d)) v * sigmoid(gate), each row over all positions up to its own.
//
//   q, query_gate, positions  as above
//   scratch  AttentionScratchFloats() floats, 16-byte aligned
//   out      [S n, H, d]  float
//   rounded  [S n, H d]  out for the integer kernels, if wanted; d is a multiple of 64 then
//
// Flash decoding: a row's positions are cut into stretches whose length depends on its position
// alone (StretchOf), each is summed by one block a key/value head (8 queries of it), and a second
// launch adds the stretches in order and gates. So a row's result does not depend on S or n.
// What the pages hold of positions before a sequence's first row is read before the kernel in front
// has ended. `max_positions` bounds the positions (exclusive) that the launch can serve: it sizes
// the grid and the scratch. Requires d in {32, 64, 128, 256}. Bytes a row: 2 G d values of each
// position, and 8 H (d + 2) a stretch, at most kMaxStretches of them; operations: 4 H d a position.
inline constexpr int kFirstStretch = 32;
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
                          const RoundedRows& rounded, cudaStream_t stream);
inline cudaError_t AttentionCuda(const AttentionShape& shape, const SequenceRows& rows,
                                 const int64_t* positions, int64_t max_positions, const float* q,
                                 const float* query_gate, const DeviceKv& kv, float* scratch,
                                 float* out, cudaStream_t stream) {
  return AttentionCuda(shape, rows, positions, max_positions, q, query_gate, kv, scratch, out, {},
                       stream);
}

// RotateAndStoreCuda and AttentionCuda of one row of each sequence, with a launch less and the same
// bits: each block makes the queries that it needs, the last stretch's its position's key and
// value. q is not written.
struct NewPosition {
  RotaryNorms norms = {};
  DeviceRotary rotary = {};
  const float* k = nullptr;  // [S, G, d]
  const float* v = nullptr;
};
// Whether one block has all queries of a key/value head.
bool CanRotateAndAttend(const AttentionShape& shape);
cudaError_t RotateAndAttendCuda(const AttentionShape& shape, int n_sequences,
                                const NewPosition& made, const int64_t* positions,
                                int64_t max_positions, const float* query_gate, const DeviceKv& kv,
                                float* scratch, float* out, const RoundedRows& rounded,
                                cudaStream_t stream);

}  // namespace hearth::worker
