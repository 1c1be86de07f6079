// Small kernels of multi-token prediction: hidden states that sequences keep from step to step.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/sequence_rows.h"

namespace hearth::worker {

// Rows are those of S sequences with n rows each (sequence_rows.h); widths are multiples of 4, all
// float32 and 16-byte aligned. Tables of S pointers lie on the device, so that a captured graph
// serves whatever sequences they name.

// before [S n, D] = the hidden state before each row: h [S n, D] of the row above or, for the first
// of a sequence, *from[s] [D], zeros at position 0. Then to[s] [n_kept, D] = the last n_kept rows
// of h. *from[s] may be one of to[s]'s rows. Requires 1 <= n_kept <= n. Bytes: 8 S n D + 8 S n_kept
// D.
struct HiddenTables {
  const float* const* from = nullptr;
  float* const* to = nullptr;
};
cudaError_t ShiftHiddenCuda(const SequenceRows& rows, int width, const int64_t* positions,
                            const float* h, const HiddenTables& hidden, int n_kept, float* before,
                            cudaStream_t stream);

// out [n, width] = *from[row].
cudaError_t GatherRowsCuda(int n_rows, int width, const float* const* from, float* out,
                           cudaStream_t stream);
// *to[row] = rows [n, width].
cudaError_t ScatterRowsCuda(int n_rows, int width, const float* rows, float* const* to,
                            cudaStream_t stream);
// out [n, 2 width] = [a | b].
cudaError_t JoinRowsCuda(int n_rows, int width, const float* a, const float* b, float* out,
                         cudaStream_t stream);

}  // namespace hearth::worker
