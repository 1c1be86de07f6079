// y = W x for few rows: the linear layers of a decode step, by CUDA. Sums in float32, in an order
// that depends on the shape and the card alone: a row's result has the same bits whatever its
// batch. Weights are exact (levels[code] * scale * factor, no rounding to integers or to bf16).
//
//   x [n_rows, in] float32, 16-byte aligned; y [n_rows, out] float32; no aliasing.
//   n_rows >= 0, more than 8 are done in groups, each of which reads the weights again.
//   Bytes moved: the weights once (a group of rows), (in + out) * 4 a row.
//   Operations: 2 * out * in a row.
//
// All return cudaErrorInvalidValue where a requirement is not met; none allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hearth::worker {

struct Levels {
  float values[16];
};

// A matrix [out, in] in device memory.
struct DeviceMatrix {
  const void* data = nullptr;        // at a multiple of 16 bytes
  const uint16_t* scales = nullptr;  // tiled ones; at a multiple of 8 bytes
  int64_t out = 0;
  int64_t in = 0;
  float factor = 1;
  Levels levels = {};  // tiled4
};

// WeightKind::kTiled4 and kTiled8, the bytes of common/tensor/tiled.h. in % 64 == 0.
cudaError_t Tiled4LinearCuda(const DeviceMatrix& weights, int n_rows, const float* x, float* y,
                             cudaStream_t stream);
cudaError_t Tiled8LinearCuda(const DeviceMatrix& weights, int n_rows, const float* x, float* y,
                             cudaStream_t stream);

// WeightKind::kBF16, row-major. in % 8 == 0.
cudaError_t Bf16LinearCuda(const DeviceMatrix& weights, int n_rows, const float* x, float* y,
                           cudaStream_t stream);

}  // namespace hearth::worker
