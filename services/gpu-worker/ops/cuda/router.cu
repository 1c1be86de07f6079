#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/router.cuh"

namespace hearth::worker {
namespace {

// One warp (and block) a row.
template <int kPerLane>
__global__ void __launch_bounds__(kWarp)
    RouteKernel(RouterShape shape, bool normalise, const float* logits, int32_t* ids,
                float* weights) {
  JoinChain();
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  const RoutedPlace place =
      RouteRow<kPerLane>(shape, normalise, logits + row * shape.n_experts, lane);
  if (lane < shape.top_k) {
    ids[row * shape.top_k + lane] = place.id;
    weights[row * shape.top_k + lane] = place.weight;
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
