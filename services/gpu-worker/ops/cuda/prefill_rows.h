// A prefill's activations as the tensor cores read them, made once from float32 for all the
// matrices that multiply them.
//
//   half   [n, width] f16, in tile order: what tiled weights are multiplied by. Within each 64
//          columns, value 16 s + 2 u + h is column 4 u + s + 32 h (s < 4, u < 8, h < 2): the order
//          in which a lane finds the codes of a tile. 2^-12 of a value is lost to rounding, 8 times
//          less than with bf16; values beyond f16's 65504 become that.
//   high, low  [n, width] bf16 each, plain order: x = high + low to 2^-17 of x. What bf16 weights
//          are multiplied by: with both, a router's choice does not move by the rounding of x.
//
// All pointers at multiples of 16 bytes, no aliasing. All functions return cudaErrorInvalidValue
// where a requirement is not met; none allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hearth::worker {

// What a product needs of it: `half` for tiled weights; `high`, and `low` unless it is null, for
// bf16.
struct PrefillRows {
  const uint16_t* half = nullptr;
  const uint16_t* high = nullptr;
  const uint16_t* low = nullptr;
};

// width % 64 == 0. Bytes: 6 n width.
cudaError_t ToHalfRowsCuda(int n_rows, int width, const float* x, uint16_t* half,
                           cudaStream_t stream);

// width % 8 == 0; `low` may be null. Bytes: 8 n width.
cudaError_t ToSplitRowsCuda(int n_rows, int width, const float* x, uint16_t* high, uint16_t* low,
                            cudaStream_t stream);

// half = silu(gate) * up, both [n, width] float: what a shared expert's down matrix multiplies.
// width % 64 == 0. Bytes: 10 n width.
cudaError_t SiluHalfRowsCuda(int n_rows, int width, const float* gate, const float* up,
                             uint16_t* half, cudaStream_t stream);

}  // namespace hearth::worker
