// The linear layers of a decode step, by CUDA: up to four matrices times the same few rows in one
// launch. 4-bit and 8-bit tiles as integers (mma_tile.cuh: the fast CPU backend's arithmetic), bf16
// in float32. The float32 kernels of linear.h, which round nothing, are the exact ones.
//
//   x [n_rows, in] float32, 16-byte aligned, n_rows <= 8; each y [n_rows, out] float32. No
//   aliasing, but for outputs that are the same for nobody. in % 64 == 0 with tiles, in % 8 == 0
//   without; at most 24,000 with tiles. Sums over blocks of 64 columns in float32, in an order that
//   depends on a matrix's shape and the card alone: the same bits whatever the rows beside it and
//   the matrices beside it. Bytes moved: the weights once, (in + out) * 4 a row. Operations: 2 *
//   out * in a row.
//
// Weights are asked for before earlier kernels have ended: they must not change in the stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/decode_levels.h"
#include "services/gpu-worker/ops/cuda/linear.h"
#include "services/gpu-worker/ops/cuda/rounded_rows.h"

namespace hearth::worker {

inline constexpr int kMaxDecodeRows = 8;
inline constexpr int kMaxDecodeLinears = 4;

enum class DecodeKind { kTiled4, kTiled8, kBf16 };

struct DecodeLinear {
  DecodeKind kind = DecodeKind::kTiled4;
  DeviceMatrix weights = {};  // its levels are not read
  DecodeLevels levels = {};   // kTiled4
  float* y = nullptr;
};

// `rounded` is x as the kernel that made x rounded it; without, each block rounds x for itself,
// which costs as much as its share of the weights where there are many rows. 8-bit tiles and bf16
// read x. cudaErrorInvalidValue where a requirement is not met; neither allocates nor synchronises.
cudaError_t DecodeLinearsCuda(const DecodeLinear* linears, int n_linears, int n_rows,
                              const float* x, const RoundedRows& rounded, cudaStream_t stream);
inline cudaError_t DecodeLinearsCuda(const DecodeLinear* linears, int n_linears, int n_rows,
                                     const float* x, cudaStream_t stream) {
  return DecodeLinearsCuda(linears, n_linears, n_rows, x, {}, stream);
}

// The same of rows that are yet to be normed: x = h of AddRmsNormCuda (norm_cuda.h), to the bit.
// Each block norms them for itself, which costs less than a launch of its own while they are few.
//
//   x, delta [n_rows, in]  delta may be null. weight [in].
//   sum [n_rows, in]       written where there is a delta: x + delta; must not be x
//   h, rounded             written: as AddRmsNormCuda does
//
// Requires n_rows <= 2, in % 64 == 0 and in <= 2048; all 16-byte aligned.
inline constexpr int kMaxNormedRows = 2, kMaxNormedWidth = 2048;
struct NormBefore {
  const float* x = nullptr;
  const float* delta = nullptr;
  const float* weight = nullptr;
  float eps = 0;
  float* sum = nullptr;
  float* h = nullptr;
  RoundedRows rounded = {};
};
cudaError_t NormedDecodeLinearsCuda(const DecodeLinear* linears, int n_linears, int n_rows,
                                    const NormBefore& norm, cudaStream_t stream);

}  // namespace hearth::worker
