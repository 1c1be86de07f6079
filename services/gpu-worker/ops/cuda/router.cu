#include <climits>

#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/router_cuda.h"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr unsigned kTaken = 0;  // below the key of every finite number

// Unsigned numbers in the order of the floats; -0 is 0, so that they tie.
__device__ unsigned KeyOf(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float ValueOf(unsigned key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// One warp (and block) a row. Lane l owns experts l, l + 32, l + 64, ...
template <int kPerLane>
__global__ void __launch_bounds__(kWarp)
    RouteKernel(RouterShape shape, bool normalise, const float* logits, int32_t* ids,
                float* weights) {
  static_assert(kPerLane >= 1 && kPerLane <= 32);
  JoinChain();
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;

  // Softmax over all experts: the largest logit and the sum.
  unsigned keys[kPerLane];
  unsigned largest_key = kTaken;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane + i * kWarp;
    keys[i] = expert < shape.n_experts ? KeyOf(logits[row * shape.n_experts + expert]) : kTaken;
    largest_key = max(largest_key, keys[i]);
  }
  const float largest = ValueOf(__reduce_max_sync(kAllLanes, largest_key));
  float total = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (keys[i] != kTaken) total += expf(ValueOf(keys[i]) - largest);
  }
  total = WarpSum(total);

  // The K largest, one a round; lane k keeps the k-th, so that rows are written in one go.
  int kept_id = 0;
  float kept = 0, chosen = 0;
  for (int k = 0; k < shape.top_k; ++k) {
    unsigned best = keys[0];
    int at = 0;
#pragma unroll
    for (int i = 1; i < kPerLane; ++i) {
      if (keys[i] > best) best = keys[i], at = i;  // the lowest id of this lane's equals
    }
    const unsigned top = __reduce_max_sync(kAllLanes, best);
    const int id = __reduce_min_sync(kAllLanes, best == top ? lane + at * kWarp : INT_MAX);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane + i * kWarp == id) keys[i] = kTaken;
    }
    const float weight = expf(ValueOf(top) - largest) / total;
    chosen += weight;
    if (lane == k) kept_id = id, kept = weight;
  }
  if (lane < shape.top_k) {
    ids[row * shape.top_k + lane] = kept_id;
    weights[row * shape.top_k + lane] = normalise ? kept / chosen : kept;
  }
}

}  // namespace

cudaError_t RouteCuda(const RouterShape& shape, bool normalise, const float* logits, int32_t* ids,
                      float* weights, cudaStream_t stream) {
  if (shape.n_rows < 0 || shape.n_experts < 1 || shape.n_experts > 32 * kWarp || shape.top_k < 1 ||
      shape.top_k > kWarp || shape.top_k > shape.n_experts) {
    return cudaErrorInvalidValue;
  }
  if (shape.n_rows == 0) return cudaSuccess;
  auto* const kernel = shape.n_experts <= 4 * kWarp    ? RouteKernel<4>
                       : shape.n_experts <= 16 * kWarp ? RouteKernel<16>
                                                       : RouteKernel<32>;
  return Launch(
      kernel,
      {.grid = dim3(static_cast<unsigned>(shape.n_rows)), .threads = kWarp, .stream = stream},
      shape, normalise, logits, ids, weights);
}

}  // namespace hearth::worker
