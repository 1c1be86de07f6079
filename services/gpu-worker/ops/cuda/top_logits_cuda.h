// The largest logits of rows, on the device: what the sampler needs of them
// (sampling/top_logits.h), by kernels that can be part of a captured step.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "services/gpu-worker/sampling/top_logits.h"

namespace hearth::worker {

// Bytes of scratch for n_rows rows, at a multiple of 16 bytes: zeroed once, before the first call
// (each leaves it as it must be for the next).
int64_t TopLogitsScratchBytes(int n_rows);

//   logits        [n_rows, vocabulary]  float
//   temperatures  [n_rows]              float, of weight_sum; 0 counts as 1
//   rows          [n_rows]              the answers, all fields of each; may lie in pinned memory
//                                       of the host, for whoever sees a later kernel's flag there
//
// Two launches. The first counts logits by their upper bits, the second sorts what lies above the
// bit pattern that leaves at least kTopLogits; a row where those are more than 4096 is kCrowded.
// The same bits whatever the batch. Requires 1 <= vocabulary <= 2^24. Bytes: 8 n_rows vocabulary,
// mostly from L2 behind the kernel that wrote them.
cudaError_t TopLogitsCuda(int n_rows, int vocabulary, const float* logits,
                          const float* temperatures, void* scratch, TopLogitsRow* rows,
                          cudaStream_t stream);

}  // namespace hearth::worker
