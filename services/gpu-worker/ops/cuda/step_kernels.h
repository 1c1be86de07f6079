// Small kernels between the large ones of a step.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hearth::worker {

// x [n, width] float32 = rows ids[t] of a table [V, width] of bf16 (`bits` 16) or float32 (32), in
// device or pinned host memory. ids device. width % 4 == 0.
cudaError_t EmbedCuda(int n_rows, int width, int bits, const void* table, const int32_t* ids,
                      float* x, cudaStream_t stream);

// gate = silu(gate) * up, `n` values; n % 4 == 0.
cudaError_t SiluMulCuda(int64_t n, float* gate, const float* up, cudaStream_t stream);

// y [n, out] = x [n, in] W^T with float32 weights [out, in], any sizes: the exact mode, and weights
// that no faster kernel reads. 8 rows at a time, each group of which reads the weights again; sums
// in an order that depends on `in` alone. Bytes: 4 out in a group.
cudaError_t F32LinearCuda(const float* weights, int64_t out, int64_t in, int n_rows, const float* x,
                          float* y, cudaStream_t stream);

}  // namespace hearth::worker
