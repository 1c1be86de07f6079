// The residual stream between two layers' halves, on the device.
#pragma once

#include <cuda_runtime.h>

#include "services/gpu-worker/ops/cuda/rounded_rows.h"

namespace hearth::worker {

// What is added to the residual stream x [T, D] before it is normed; null where there is none.
struct ResidualTerms {
  const float* delta = nullptr;   // [T, D]
  const float* shared = nullptr;  // [T, D], times sigmoid(gate): the shared expert
  const float* gate = nullptr;    // [T], given if `shared` is
};

// x += delta + shared * sigmoid(gate), then h = x / sqrt(mean(x^2) + eps) * (1 + weight).
//
//   x, h    [T, D]  float, 16-byte aligned like the terms; h may be null: then x is only added to
//   weight  [D]     float, 16-byte aligned
//
//   rounded  h for the integer kernels, if wanted; D is a multiple of 64 then
//
// Requires D a multiple of 4 and at most 8192. A row's result depends on that row alone. One block
// a row. Bytes: 4 T D (2 + the number of terms + 1 for h) + 4 D; about 6 T D operations.
cudaError_t AddRmsNormCuda(int n_rows, int width, float* x, const ResidualTerms& terms,
                           const float* weight, float eps, float* h, const RoundedRows& rounded,
                           cudaStream_t stream);
inline cudaError_t AddRmsNormCuda(int n_rows, int width, float* x, const ResidualTerms& terms,
                                  const float* weight, float eps, float* h, cudaStream_t stream) {
  return AddRmsNormCuda(n_rows, width, x, terms, weight, eps, h, {}, stream);
}

}  // namespace hearth::worker
