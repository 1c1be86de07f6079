// AttentionCuda (attention_cuda.h) for many rows of one sequence, on tensor cores: the same tensors
// and the same result but for rounding: q and the weights of positions are rounded to bf16, as the
// pages' keys and values are. Only bf16 pages.
//
//   positions  [n] int64, device: positions[0] + t, as the rows of one sequence have them;
//   negative:
//              an idle place, nothing is written
//   q          [n, H, d]    float, RotateAndStoreCuda's (the rows' own k and v are in the pages)
//   query_gate [n, H, 2 d]  float: gates are read
//   out        [n, H, d]    float
//
// One block owns 64 queries (heads of a key/value head's group, by row) and goes through the
// positions 64 at a time (32 where d is 256), from 0 on: a row's result does not depend on n or on
// its place among the rows. Requires d in {32, 64, 128, 256}. Bytes: 4 G d of each position for
// every 64 G / H rows, out of L2, and 16 H d a row; operations: 4 H d a row and position.
#pragma once

#include "services/gpu-worker/ops/cuda/attention_cuda.h"

namespace hearth::worker {

cudaError_t PrefillAttentionCuda(const AttentionShape& shape, int n_rows, const int64_t* positions,
                                 const float* q, const float* query_gate, const DeviceKv& kv,
                                 float* out, cudaStream_t stream);

}  // namespace hearth::worker
