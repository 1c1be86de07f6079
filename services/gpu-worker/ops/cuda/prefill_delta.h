// DeltaRuleCuda (delta_cuda.h) for many rows of one sequence: chunks of 64 rows at a time, on
// tensor cores.
//
// With G the sum of log decays from the chunk's first row on, and rows i, j of a chunk:
//   (1 + A) U = beta (V - exp(G) K S),  A_ij = beta_i exp(G_i - G_j) (k_i k_j) for j < i
//   O = exp(G) Q S + P U,               P_ij = exp(G_i - G_j) (q_i k_j) for j <= i
//   S = exp(G_63) S + (exp(G_63 - G) K)^T U
// What does not need S (the solutions for V and for K, and P) is made for all chunks at once; then
// one warp a head and 16 columns of S goes through the chunks, S in float32 in its registers.
//
// Solutions, S and all sums are float32, but what is multiplied is rounded to f16 (2^-11): the
// result differs from the recurrent one by 3e-4 of its size (root mean square; measured on an
// H100). It depends on how a sequence's rows are divided among launches, unless at multiples of 64.
// Rows beyond f16's range (S, U, or keys above 65504) are not provided for: keys and queries have
// length 1 and 1 / sqrt(dk).
#pragma once

#include "services/gpu-worker/ops/cuda/delta_cuda.h"

namespace hearth::worker {

// Of scratch: what 512 rows need at most, however many there are.
int64_t PrefillDeltaScratchBytes(const DeltaShape& shape, int n_rows);

//   in, qkvz, norm, eps  as DeltaRuleCuda has them, of n_rows rows of one sequence
//   state    device table of one pointer to [Hv, dk, dv] float; null: an idle place, nothing is
//            written
//   scratch  PrefillDeltaScratchBytes(), at a multiple of 16 bytes
//   out      [n, Hv, dv] float
//
// dk and dv multiples of 16, at most 128. Two launches for each 512 rows, and one. Bytes: 8 Hv dk
// dv + n (20 Hv dv + 4 channels) and the scratch twice, out of L2. Operations: some n Hv (1024 + 6
// dv) dk.
cudaError_t PrefillDeltaRuleCuda(const DeltaShape& shape, int n_rows, const DeltaInputs& in,
                                 const float* qkvz, const float* norm, float eps,
                                 float* const* state, void* scratch, float* out,
                                 cudaStream_t stream);

}  // namespace hearth::worker
