#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/delta_norm.cuh"
#include "services/gpu-worker/ops/cuda/delta_update.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kDefaultParts =
    4;  // of 32 heads: 128 blocks for an H100's 132 multiprocessors; a guess

struct DeltaArgs {
  DeltaShape shape;
  SequenceRows rows;
  DeltaInputs in;
  const float* qkvz;
  const float* norm;
  float eps;
  float* const* states;
  float* out;
  RoundedRows rounded;
};

// Of one row: mixed [channels], decay and beta [Hv].
template <int kRows>
__device__ RowInputs<kRows> Load(const DeltaShape& shape, const DeltaPlace& place,
                                 const float* mixed, const float* decay, const float* beta) {
  const int dk = shape.key_dim;
  const int64_t n_keys = int64_t{shape.key_heads} * dk;
  const int key_head = place.head / (shape.value_heads / shape.key_heads);
  RowInputs<kRows> in;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = place.group + r * kGroups;
    in.q[r] = i < dk ? mixed[key_head * dk + i] : 0.f;
    in.k[r] = i < dk ? mixed[n_keys + key_head * dk + i] : 0.f;
  }
  const float* const v = mixed + 2 * n_keys + int64_t{place.head} * shape.value_dim + place.column;
  const bool is_mine = place.column < shape.value_dim;
  in.v = is_mine ? float4{v[0], v[1], v[2], v[3]} : float4{0, 0, 0, 0};
  in.decay = decay[place.head];
  in.beta = beta[place.head];
  return in;
}

// One block owns a head's columns, or a part of them (blockIdx.z), of one sequence (y); each of its
// warps 8 columns, on its own. The state is in registers from the first row to the last.
template <int kRows, bool kIsNormed>
__global__ void __launch_bounds__(kMaxDeltaDim / kColumnsAWarp * kWarp)
    DeltaRuleKernel(DeltaArgs args) {
  static_assert(kRows >= 1 && kRows * kGroups <= kMaxDeltaDim);
  __shared__ float whole[kMaxDeltaDim];  // a head's output, for the norm
  // Past the L1: written by kernels before the one in front, which may not have ended.
  float* const states = reinterpret_cast<float*>(
      __ldcg(reinterpret_cast<const unsigned long long*>(args.states + blockIdx.y)));
  const DeltaShape& shape = args.shape;
  const int dk = shape.key_dim, dv = shape.value_dim;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_column = static_cast<int>(blockIdx.z * (blockDim.x / kWarp)) * kColumnsAWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const DeltaPlace place{.head = static_cast<int>(blockIdx.x),
                         .group = lane / kColumnLanes,
                         .column = first_column + warp * kColumnsAWarp + lane % kColumnLanes * 4};
  const bool is_mine = states != nullptr && place.column < dv;
  const int n_rows = args.rows.n_rows;
  const int64_t first_row = int64_t{blockIdx.y} * n_rows;

  // Read the state, while earlier kernels end.
  float* const home = states + int64_t{place.head} * dk * dv + place.column;
  float state[kRows][4];
  LoadState(home, place, is_mine, dk, dv, state);

  JoinChain();
  if (states == nullptr) return;  // the whole block
  const DeltaDrafts& drafts = args.in.drafts;
  const int n_pending = drafts.n_pending != nullptr ? drafts.n_pending[blockIdx.y] : 0;
  const int n = n_pending + n_rows;
  const auto load = [&](int i) {
    const int64_t heads = shape.value_heads, channels = KeptRowFloats(shape) - 2 * heads;
    if (i < n_pending) {
      const float* const row = drafts.pending[blockIdx.y] + i * KeptRowFloats(shape);
      return Load<kRows>(shape, place, row, row + channels, row + channels + heads);
    }
    const int64_t row = first_row + i - n_pending;
    return Load<kRows>(shape, place, args.in.mixed + row * channels, args.in.decay + row * heads,
                       args.in.beta + row * heads);
  };
  RowInputs<kRows> next = {};
  if (n > 0) next = load(0);

  // Row after row, the next one's inputs on their way. The state is written before drafts.
  for (int i = 0; i < n; ++i) {
    const RowInputs<kRows> in = next;
    if (i + 1 < n) next = load(i + 1);
    const float4 out = UpdateState<kRows>(in, state);
    if (i + 1 == n - drafts.n) StoreState(state, place, is_mine, dk, dv, home);
    if (i < n_pending || !is_mine || place.group != 0) continue;
    if constexpr (kIsNormed) {
      *reinterpret_cast<float4*>(whole + place.column) = out;
    } else {
      const int64_t row = first_row + i - n_pending;
      float* const to = args.out + (row * shape.value_heads + place.head) * dv;
      *reinterpret_cast<float4*>(to + place.column) = out;
    }
  }

  // Norm, of a single row.
  if constexpr (kIsNormed) {
    __syncthreads();  // every warp's columns are in `whole`
    if (warp == 0) {
      NormHead(shape, {args.qkvz, args.norm, args.eps, args.rounded}, place.head, first_row,
               LoadHead(whole, dv), LoadZ(shape, args.qkvz, place.head, first_row),
               LoadHead(args.norm, dv),
               args.out + (first_row * shape.value_heads + place.head) * dv);
    }
  }
}

// One warp (and block) a head of a row; in place.
__global__ void __launch_bounds__(kWarp) GatedNormKernel(DeltaArgs args) {
  const int64_t row = blockIdx.y;
  JoinChain();
  if (args.states[row / args.rows.n_rows] == nullptr) return;
  const int head = static_cast<int>(blockIdx.x), dv = args.shape.value_dim;
  float* const at = args.out + (row * args.shape.value_heads + head) * dv;
  NormHead(args.shape, {args.qkvz, args.norm, args.eps, args.rounded}, head, row, LoadHead(at, dv),
           LoadZ(args.shape, args.qkvz, head, row), LoadHead(args.norm, dv), at);
}

template <bool kIsNormed>
cudaError_t LaunchRule(const DeltaArgs& args, int parts, int warps, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.shape.value_heads),
                  static_cast<unsigned>(args.rows.n_sequences), static_cast<unsigned>(parts));
  const auto threads = static_cast<unsigned>(warps * kWarp);
  const int rows = (args.shape.key_dim + kGroups - 1) / kGroups;
  auto* const kernel = rows <= 2   ? DeltaRuleKernel<2, kIsNormed>
                       : rows <= 4 ? DeltaRuleKernel<4, kIsNormed>
                                   : DeltaRuleKernel<8, kIsNormed>;
  return Launch(kernel, {.grid = grid, .threads = threads, .stream = stream}, args);
}

}  // namespace

cudaError_t DeltaRuleCuda(const DeltaShape& shape, const SequenceRows& rows, const DeltaInputs& in,
                          const float* qkvz, const float* norm, float eps, float* const* states,
                          float* out, const RoundedRows& rounded, int parts, cudaStream_t stream) {
  if (rows.n_sequences < 0 || rows.n_rows < 0 || rows.total() > 65535 || parts < 0 ||
      shape.key_heads < 1 || shape.value_heads % shape.key_heads != 0 || shape.key_dim < 1 ||
      shape.key_dim > kMaxDeltaDim || shape.value_dim < 4 || shape.value_dim % 4 != 0 ||
      shape.value_dim > kMaxDeltaDim || (rounded.words != nullptr && shape.value_dim % 64 != 0) ||
      in.drafts.n < 0 || (in.drafts.n > 0 && in.drafts.n >= rows.n_rows)) {
    return cudaErrorInvalidValue;
  }
  if (rows.total() == 0 && (rows.n_sequences == 0 || in.drafts.n_pending == nullptr)) {
    return cudaSuccess;
  }
  const DeltaArgs args{shape, rows, in, qkvz, norm, eps, states, out, rounded};
  const int all_warps = (shape.value_dim + kColumnsAWarp - 1) / kColumnsAWarp;
  const int wanted = parts == 0 ? kDefaultParts : parts;
  const int warps = (all_warps + wanted - 1) / wanted;
  const int n_parts = (all_warps + warps - 1) / warps;
  if (n_parts == 1 && rows.n_rows == 1) return LaunchRule<true>(args, n_parts, warps, stream);
  if (const cudaError_t error = LaunchRule<false>(args, n_parts, warps, stream);
      error != cudaSuccess || rows.total() == 0) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(shape.value_heads), static_cast<unsigned>(rows.total()));
  return Launch(GatedNormKernel, {.grid = grid, .threads = kWarp, .stream = stream}, args);
}

}  // namespace hearth::worker
