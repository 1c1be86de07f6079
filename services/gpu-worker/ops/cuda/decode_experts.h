// The experts of a decode step by the integer scheme of mma_tile.cuh: what ExpertsCuda (experts.h)
// does, with activations rounded to int8 a block of 64, before gate and up and again before down.
//
// Same shapes, places and requirements as there, but n_rows <= 8. Rows that share an expert read
// its gate and up once. A shared expert that every row has is one more place, if it is packed as a
// slot: its weight in the table is sigmoid of its gate, and top_k counts it.
//
// Two launches. A row's result has the same bits whatever its batch. The table is read when the
// kernels run; the second reads it before the first has ended, so that nothing between them may
// write it.
//   Bytes moved: 3 * inner * width * (1/2 + 2/64) a different expert, and 4 * inner * 2 a place.
//   Operations: 6 * inner * width a place.
#pragma once

#include <cuda_runtime_api.h>

#include "services/gpu-worker/ops/cuda/decode_levels.h"
#include "services/gpu-worker/ops/cuda/experts.h"
#include "services/gpu-worker/ops/cuda/rounded_rows.h"

namespace hearth::worker {

// shape.levels is not read. `rounded` is h as the kernel that made h rounded it, if it did (see
// decode_linear.h). cudaErrorInvalidValue where a requirement is not met.
cudaError_t DecodeExpertsCuda(const ExpertsShape& shape, const DecodeLevels& levels,
                              const ExpertPlace* places, const float* h, const RoundedRows& rounded,
                              float* act, float* out, cudaStream_t stream);
inline cudaError_t DecodeExpertsCuda(const ExpertsShape& shape, const DecodeLevels& levels,
                                     const ExpertPlace* places, const float* h, float* act,
                                     float* out, cudaStream_t stream) {
  return DecodeExpertsCuda(shape, levels, places, h, {}, act, out, stream);
}

}  // namespace hearth::worker
