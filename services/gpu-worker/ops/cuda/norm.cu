#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/norm_cuda.h"
#include "services/gpu-worker/ops/cuda/norm_row.cuh"
#include "services/gpu-worker/ops/cuda/round_vector.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kThreads = kNormThreads;  // one float4 a thread at D = 2048

// One block a row. Thread i owns the float4s i, i + kThreads, ... and keeps them in registers.
template <int kVectors>
__global__ void __launch_bounds__(kThreads)
    AddRmsNormKernel(int width, float* x, ResidualTerms terms, const float* __restrict__ weight,
                     float eps, float* h, RoundedRows rounded) {
  static_assert(kVectors >= 1 && kVectors <= 4);
  __shared__ float sums[kThreads / kWarp];
  const int n_vectors = width / 4;
  const int64_t row = int64_t{blockIdx.x} * n_vectors;
  float4* const x4 = reinterpret_cast<float4*>(x) + row;
  const float4* const delta4 = reinterpret_cast<const float4*>(terms.delta) + row;
  const float4* const shared4 = reinterpret_cast<const float4*>(terms.shared) + row;

  // The weights, while earlier kernels end.
  const float4* const weight4 = reinterpret_cast<const float4*>(weight);
  float4 scales[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads;
    if (at < n_vectors && h != nullptr) scales[i] = weight4[at];
  }
  JoinChain();

  // Add.
  const float gate = terms.shared != nullptr ? SigmoidOf(terms.gate[blockIdx.x]) : 0;
  float4 mine[kVectors];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads;
    if (at >= n_vectors) continue;
    mine[i] = x4[at];
    if (terms.delta != nullptr) mine[i] = Added(mine[i], delta4[at]);
    if (terms.shared != nullptr) {
      const float4 shared = shared4[at];
      mine[i] =
          Added(mine[i], {shared.x * gate, shared.y * gate, shared.z * gate, shared.w * gate});
    }
    if (terms.delta != nullptr || terms.shared != nullptr) x4[at] = mine[i];
    squares = AddSquares(mine[i], squares);
  }
  if (h == nullptr) return;  // of the whole grid

  // Norm.
  const float scale = NormScale(BlockSum(squares, sums), width, eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads;
    const bool is_there = at < n_vectors;
    float4 v = {0, 0, 0, 0};
    if (is_there) {
      v = Normed(mine[i], scale, scales[i]);
      reinterpret_cast<float4*>(h)[row + at] = v;
    }
    if (rounded.words != nullptr) StoreRounded(v, is_there, rounded, blockIdx.x, width, at * 4);
  }
}

}  // namespace

cudaError_t AddRmsNormCuda(int n_rows, int width, float* x, const ResidualTerms& terms,
                           const float* weight, float eps, float* h, const RoundedRows& rounded,
                           cudaStream_t stream) {
  if (n_rows < 0 || width <= 0 || width % 4 != 0 || width > 4 * kThreads * 4) {
    return cudaErrorInvalidValue;
  }
  if (terms.shared != nullptr && terms.gate == nullptr) return cudaErrorInvalidValue;
  if (rounded.words != nullptr && width % 64 != 0) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(n_rows)), .threads = kThreads, .stream = stream};
  auto* const kernel = width <= 4 * kThreads   ? AddRmsNormKernel<1>
                       : width <= 8 * kThreads ? AddRmsNormKernel<2>
                                               : AddRmsNormKernel<4>;
  return Launch(kernel, shape, width, x, terms, weight, eps, h, rounded);
}

}  // namespace hearth::worker
