// The gated delta net's two kernels, on the device: everything between in_proj_qkvz / in_proj_ba
// and out_proj.
//
// Rows are those of S sequences with n rows each (sequence_rows.h). What a sequence keeps is found
// through device tables of S pointers, so that a captured graph serves whatever sequences the
// tables name; a null pointer is an idle place, whose rows are not written. A row's result does not
// depend on S, nor on how its sequence's rows were divided among launches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/rounded_rows.h"
#include "services/gpu-worker/ops/cuda/sequence_rows.h"
#include "services/gpu-worker/ops/shapes.h"

namespace hearth::worker {

// Convolution with history, SiLU, the norms of q and k, and the gates.
//
//   qkvz       [S n, Hk, q dk | k dk | v (Hv/Hk) dv | z (Hv/Hk) dv]  float, in_proj_qkvz's output
//   ba         [S n, Hk, b Hv/Hk | a Hv/Hk]  float, in_proj_ba's output
//   kernel     [W, channels]  float, newest sample last; channels are all q | all k | all v
//   a_log, dt_bias  [Hv]  float
//   histories  [S] of [W - 1, channels]  float, oldest first: the inputs before row 0; updated.
//              With drafts [W - 1 + their number, channels], see DeltaDrafts
//   mixed      [S n, channels]  float: q / |q| / sqrt(dk), k / |k|, v
//   decay, beta  [S n, Hv]  float: exp(g), sigmoid(b)
//
// Requires 2 <= W <= 4, dk and dv at most 256. No two histories may alias. One warp owns one head's
// q, k or v over 32 rows. Bytes: 4 S n (2 channels) + 4 S (2 W - 2) channels + 4 W channels.
struct ConvolveWeights {
  int width = 0;  // W
  const float* kernel = nullptr;
  const float* a_log = nullptr;
  const float* dt_bias = nullptr;
};

// Rows that may be taken back (guesses). The state stays as it was before them; what the rule needs
// of them is kept, and the next launch sees to those that were not taken back before its own rows,
// with the same result. So taking back costs nothing, and no state is ever copied.
//
// A history keeps the inputs of such rows behind the others: those before the next row 0 begin at
// row n_pending of it.
struct DeltaDrafts {
  int n = 0;  // the last n rows of each sequence, fewer than all of them
  // Of the rows that an earlier launch kept, how many of the first the state is still to see.
  const int32_t* n_pending = nullptr;     // [S], device; null: none
  const float* const* pending = nullptr;  // [S] of [n_pending, KeptRowFloats]
  float* const* kept = nullptr;           // [S] of [n, KeptRowFloats], written; not `pending`
};
// A row of mixed, of decay and of beta.
__host__ __device__ constexpr int64_t KeptRowFloats(const DeltaShape& shape) {
  return 2 * int64_t{shape.key_heads} * shape.key_dim +
         int64_t{shape.value_heads} * (shape.value_dim + 2);
}

struct DeltaInputs {
  float* mixed = nullptr;
  float* decay = nullptr;
  float* beta = nullptr;
  DeltaDrafts drafts = {};
};
cudaError_t ConvolveCuda(const DeltaShape& shape, const SequenceRows& rows,
                         const ConvolveWeights& weights, const float* qkvz, const float* ba,
                         float* const* histories, const DeltaInputs& to, cudaStream_t stream);

// The recurrent gated delta rule and the gated norm.
//
//   in      as ConvolveCuda left it
//   qkvz    as above; z is read
//   norm    [dv]  float, plain
//   states  [S] of [Hv, dk, dv]  float, 16-byte aligned; updated
//   rounded [S n, Hv dv]  out for the integer kernels, if wanted; dv is a multiple of 64 then
//   out     [S n, Hv, dv]  float: norm * o / sqrt(mean(o^2) + eps) * silu(z)
//
// Requires dk <= 128, dv a multiple of 4 and at most 128. No two states may alias. A state is read
// once and written once a launch. It is read before the kernel in front has ended, so that between
// two launches that update one state there must be another kernel: ConvolveCuda, say. `parts` cuts
// the columns of a head among that many blocks (0: the default), with the same result. With more
// than one part or row the norm is a second launch. Without rows (n = 0) the states still see to
// what is pending. Bytes: 8 S Hv dk dv + 4 S n (channels + 2 Hv dv + 2 Hv); operations: 8 S n Hv dk
// dv.
cudaError_t DeltaRuleCuda(const DeltaShape& shape, const SequenceRows& rows, const DeltaInputs& in,
                          const float* qkvz, const float* norm, float eps, float* const* states,
                          float* out, const RoundedRows& rounded, int parts, cudaStream_t stream);
inline cudaError_t DeltaRuleCuda(const DeltaShape& shape, const SequenceRows& rows,
                                 const DeltaInputs& in, const float* qkvz, const float* norm,
                                 float eps, float* const* states, float* out, int parts,
                                 cudaStream_t stream) {
  return DeltaRuleCuda(shape, rows, in, qkvz, norm, eps, states, out, {}, parts, stream);
}

// Both of one row of each sequence, in one launch: the same bits. Without drafts, pending or kept.
//
//   arrivals  [S, Hk]  device, zero at first, and again after each launch
//
// The rest as above; of histories and states no two may alias, and between two launches that update
// one there must be another kernel. dk <= 128. Bytes: 8 S (Hv dk dv + (W - 1) channels) + 4 S
// (channels + 2 Hv dv) + 4 W channels.
struct DeltaStep {
  ConvolveWeights weights;
  const float* qkvz = nullptr;
  const float* ba = nullptr;
  const float* norm = nullptr;
  float eps = 0;
  float* const* histories = nullptr;
  float* const* states = nullptr;
  uint32_t* arrivals = nullptr;
};
cudaError_t DeltaStepCuda(const DeltaShape& shape, int n_sequences, const DeltaStep& step,
                          float* out, const RoundedRows& rounded, cudaStream_t stream);

}  // namespace hearth::worker
