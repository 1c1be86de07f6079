// Tiled weights as a plain bf16 matrix [out, in], row-major, for the matrix products of a prefill.
// Each value is levels[code] (or the integer) times scale * factor in float32, rounded to nearest
// even. `to` at a multiple of 8 bytes, in % 64 == 0, no aliasing.
//   Bytes moved: out * in * (1/2 + 2/64) (8-bit: 1 + 2/64) read, 2 * out * in written.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/linear.h"

namespace hearth::worker {

// cudaErrorInvalidValue where a requirement is not met; neither allocates nor synchronises.
cudaError_t Tiled4ToBf16Cuda(const DeviceMatrix& weights, uint16_t* to, cudaStream_t stream);
cudaError_t Tiled8ToBf16Cuda(const DeviceMatrix& weights, uint16_t* to, cudaStream_t stream);

}  // namespace hearth::worker
