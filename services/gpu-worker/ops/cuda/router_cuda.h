// The router's choice, on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hearth::worker {

struct RouterShape {
  int n_rows = 0;     // T
  int n_experts = 0;  // E
  int top_k = 0;      // K
};

// Picks the experts of every row: Ops::Route on the device.
//
//   logits   [T, E]  float, finite
//   ids      [T, K]  int32, by falling logit; ties go to the lower id
//   weights  [T, K]  float, softmax over all E; divided by their sum if `normalise`
//
// Requires E <= 1024 and 1 <= K <= min(32, E). One warp a row; a row's result depends on that row
// alone. Bytes: 4 T E + 8 T K.
cudaError_t RouteCuda(const RouterShape& shape, bool normalise, const float* logits, int32_t* ids,
                      float* weights, cudaStream_t stream);

}  // namespace hearth::worker
