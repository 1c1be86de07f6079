// AttentionCuda (attention_cuda.h) for many rows of one sequence, on tensor cores: the same tensors
// and the same result but for rounding. Only bf16 pages.
//
//   positions  [n] int64, device: positions[0] + t, as the rows of one sequence have them
//   q          [n, H, d]    float, RotateAndStoreCuda's (the rows' own k and v are in the pages)
//   query_gate [n, H, 2 d]  float: gates are read
//   out        [n, H, d]    float
//
// One block owns 64 (query head of a group, row) pairs of a key/value head and goes through the
// positions 64 at a time. q is split in two bf16 parts, so that scores are as exact as the pages'
// keys; weights are rounded to bf16. A row's result does not depend on n where its position is the
// same. d in {32, 64, 128, 256}; kv.page_tokens a multiple of 16 or a divisor of it. Operations:
// 6 H d a row and position.
#pragma once

#include "services/gpu-worker/ops/cuda/attention_cuda.h"

namespace hearth::worker {

cudaError_t PrefillAttentionCuda(const AttentionShape& shape, int n_rows, const int64_t* positions,
                                 const float* q, const float* query_gate, const DeviceKv& kv,
                                 float* out, cudaStream_t stream);

}  // namespace hearth::worker
