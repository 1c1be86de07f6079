// What the two kernels of the chunked delta rule (prefill_delta.h) hand over, and how f16 matrices
// lie in shared memory and in scratch.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/delta_cuda.h"

namespace hearth::worker {

inline constexpr int kChunk = 64;  // rows
inline constexpr int kKeys = 128;  // dk, filled up with zeros
inline constexpr int kMaxDim = 128;

// f16 matrices as ldmatrix reads them: [64, kKeys] and [64, 64], rows' pieces of 16 bytes swapped
// by the row. They lie in scratch as they lie in shared memory.
inline constexpr int kKeyImage = kChunk * kKeys, kSquareImage = kChunk * kChunk;  // values
template <int kColumns>
__device__ inline int ImagePlace(int row, int column) {
  return row * kColumns + ((column / 8) ^ (row & 7)) * 8 + column % 8;
}
template <int kColumns>
__device__ inline uint32_t PieceAddress(uint32_t image, int row, int piece) {
  return image + static_cast<uint32_t>(row * kColumns * 2 + ((piece ^ (row & 7)) << 4));
}

struct DeltaScratch {
  float* solved_v;   // [chunks, Hv, 64, dv]
  float* factors;    // [chunks, Hv, 2, 64]: exp(G_i) and exp(G_63 - G_i)
  __half* solved_k;  // [chunks, Hv] images of -(1 + A)^-1 beta exp(G) K
  __half* products;  // [chunks, Hv] square images of P
  __half* keys;      // [chunks, Hk] images
  __half* queries;   // [chunks, Hk] images
};

struct DeltaChunks {
  DeltaShape shape;
  int n_rows;  // of the segment
  DeltaInputs in;
  float* const* state;
  DeltaScratch scratch;
  float* out;
};

__device__ inline uint32_t PackFloats(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The first makes what does not need the state, for all chunks at once; the second goes through the
// chunks.
cudaError_t LaunchDeltaChunks(const DeltaChunks& args, cudaStream_t stream);
cudaError_t LaunchDeltaScan(const DeltaChunks& args, int shared_bytes, cudaStream_t stream);

}  // namespace hearth::worker
