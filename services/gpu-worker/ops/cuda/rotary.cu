#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/kv_pages.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/rotary_head.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

struct RotaryArgs {
  AttentionShape shape;
  SequenceRows rows;
  RotaryNorms norms;
  DeviceRotary rotary;
  const int64_t* positions;
  int n_earlier;  // as if each row stood so many positions earlier
  const float* query_gate;
  const float* k;
  const float* v;
  DeviceKv kv;
  float* q;
};

// One warp (and block) owns one head of a row: blockIdx.x counts the H heads of q, then the G of k,
// then the G of v.
template <typename T>
__global__ void __launch_bounds__(kWarp) RotateAndStoreKernel(RotaryArgs args) {
  __shared__ float shared[kMaxHeadDim];
  JoinChain();
  const int64_t row = blockIdx.y;
  const int64_t position = args.positions[row] - args.n_earlier;
  if (position < 0) return;
  const AttentionShape& shape = args.shape;
  const int d = shape.head_dim, lane = static_cast<int>(threadIdx.x);
  const int unit = static_cast<int>(blockIdx.x);
  const bool is_query = unit < shape.n_heads;
  const bool is_value = unit >= shape.n_heads + shape.n_kv_heads;
  const int head = is_query ? unit : unit - shape.n_heads - (is_value ? shape.n_kv_heads : 0);

  // Read.
  const float* const from =
      is_query ? args.query_gate + (row * shape.n_heads + head) * 2 * d
               : (is_value ? args.v : args.k) + (row * shape.n_kv_heads + head) * d;
  float values[kHeadValues];
  LoadHeadValues(from, d, values);

  // Norm and rotary; one answer for the whole warp.
  if (!is_value) {
    NormAndRotate(
        {d, is_query ? args.norms.q_norm : args.norms.k_norm, args.norms.eps, args.rotary},
        position, values, shared);
  }

  // Write.
  if (!is_query) {
    StoreKvHead<T>(args.kv, is_value,
                   KvOffset(args.kv, shape, row / args.rows.n_rows, position, head), d, values);
    return;
  }
  float* const to = args.q + (row * shape.n_heads + head) * d;
#pragma unroll
  for (int i = 0; i < kHeadValues; ++i) {
    const int dim = lane + i * kWarp;
    if (dim < d) to[dim] = values[i];
  }
}

cudaError_t LaunchRotary(const RotaryArgs& args, cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  const SequenceRows& rows = args.rows;
  if (rows.n_sequences < 0 || rows.n_rows < 0 || rows.total() > 65535 || shape.n_kv_heads < 1 ||
      shape.n_heads % shape.n_kv_heads != 0 || shape.head_dim < 1 || shape.head_dim > kMaxHeadDim ||
      args.rotary.half < 0 || 2 * args.rotary.half > shape.head_dim || args.kv.page_tokens < 1) {
    return cudaErrorInvalidValue;
  }
  if (rows.total() == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(shape.n_heads + 2 * shape.n_kv_heads),
                  static_cast<unsigned>(rows.total()));
  auto* const kernel = args.kv.type == KvType::kF32    ? RotateAndStoreKernel<float>
                       : args.kv.type == KvType::kBf16 ? RotateAndStoreKernel<__nv_bfloat16>
                                                       : RotateAndStoreKernel<int8_t>;
  return Launch(kernel, {.grid = grid, .threads = kWarp, .stream = stream}, args);
}

}  // namespace

cudaError_t RotateAndStoreCuda(const AttentionShape& shape, const SequenceRows& rows,
                               const RotaryNorms& norms, const DeviceRotary& rotary,
                               const int64_t* positions, const float* query_gate, const float* k,
                               const float* v, const DeviceKv& kv, float* q, cudaStream_t stream) {
  return LaunchRotary({shape, rows, norms, rotary, positions, 0, query_gate, k, v, kv, q}, stream);
}

cudaError_t StoreOneBeforeCuda(const AttentionShape& shape, const SequenceRows& rows,
                               const RotaryNorms& norms, const DeviceRotary& rotary,
                               const int64_t* positions, const float* k, const float* v,
                               const DeviceKv& kv, cudaStream_t stream) {
  AttentionShape keys_alone = shape;
  keys_alone.n_heads = 0;
  return LaunchRotary({keys_alone, rows, norms, rotary, positions, 1, nullptr, k, v, kv, nullptr},
                      stream);
}

}  // namespace hearth::worker
