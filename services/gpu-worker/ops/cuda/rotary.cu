#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/kv_pages.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kMaxDim = 256;
constexpr int kPerLane = kMaxDim / kWarp;

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

// Cosine and sine of position * frequency. The angle reaches 1e6, so that it is brought below half
// a turn in double; the sine of that needs no more than float.
__device__ float2 Turn(const DeviceRotary& rotary, int64_t position, int j) {
  constexpr double kTurnsARadian = 0.15915494309189533577;
  const double turns =
      static_cast<double>(position) * rotary.inverse_frequencies[j] * kTurnsARadian;
  float sine, cosine;
  sincospif(static_cast<float>(2 * (turns - rint(turns))), &sine, &cosine);
  const auto scale = static_cast<float>(rotary.scale);
  return {cosine * scale, sine * scale};
}

// Norm with weight 1 + w and rotation of one head: values[i] is that of dimension lane + 32 i.
// `shared` [d] is this warp's.
__device__ void NormAndRotate(const RotaryArgs& args, const float* norm, int64_t position,
                              float (&values)[kPerLane], float* shared) {
  const int d = args.shape.head_dim, half = args.rotary.half;
  const int lane = static_cast<int>(threadIdx.x);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) squares += values[i] * values[i];
  const float scale = 1 / sqrtf(WarpSum(squares) / static_cast<float>(d) + args.norms.eps);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int dim = lane + i * kWarp;
    if (dim < d) shared[dim] = values[i] * scale * (1 + norm[dim]);
  }
  __syncwarp();  // pairs lie in different lanes
  for (int j = lane; j < half; j += kWarp) {
    const float2 turn = Turn(args.rotary, position, j);
    const float a = shared[j], b = shared[j + half];
    shared[j] = a * turn.x - b * turn.y;
    shared[j + half] = b * turn.x + a * turn.y;
  }
  __syncwarp();  // back to the lanes that own them
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int dim = lane + i * kWarp;
    if (dim < d) values[i] = shared[dim];
  }
}

// One warp (and block) owns one head of a row: blockIdx.x counts the H heads of q, then the G of k,
// then the G of v.
template <typename T>
__global__ void __launch_bounds__(kWarp) RotateAndStoreKernel(RotaryArgs args) {
  __shared__ float shared[kMaxDim];
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
  float values[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int dim = lane + i * kWarp;
    values[i] = dim < d ? from[dim] : 0.f;
  }

  // Norm and rotary; one answer for the whole warp.
  if (!is_value) {
    NormAndRotate(args, is_query ? args.norms.q_norm : args.norms.k_norm, position, values, shared);
  }

  // Write.
  const int64_t at = is_query ? (row * shape.n_heads + head) * d
                              : KvOffset(args.kv, shape, row / args.rows.n_rows, position, head);
  T* const pool = static_cast<T*>(is_value ? args.kv.values : args.kv.keys);
  float inverse = 1;
  if constexpr (std::is_same_v<T, int8_t>) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) largest = fmaxf(largest, fabsf(values[i]));
    largest = WarpMax(largest);
    inverse = largest > 0 ? 127 / largest : 0.f;
    float* const scales = is_value ? args.kv.value_scales : args.kv.key_scales;
    if (!is_query && lane == 0) scales[at / d] = largest / 127;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int dim = lane + i * kWarp;
    if (dim >= d) continue;
    if (is_query) {
      args.q[at + dim] = values[i];
    } else {
      StoreKvValue(values[i] * inverse, pool + at + dim);
    }
  }
}

cudaError_t LaunchRotary(const RotaryArgs& args, cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  const SequenceRows& rows = args.rows;
  if (rows.n_sequences < 0 || rows.n_rows < 0 || rows.total() > 65535 || shape.n_kv_heads < 1 ||
      shape.n_heads % shape.n_kv_heads != 0 || shape.head_dim < 1 || shape.head_dim > kMaxDim ||
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
