#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/delta_norm.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

// A warp owns 8 columns of a state: 2 lanes of 4 columns each times 16 groups of rows, so that one
// load of the warp takes 16 whole sectors of 32 bytes, and the sums over rows stay in the warp.
constexpr int kColumnLanes = 2;
constexpr int kGroups = kWarp / kColumnLanes;
constexpr int kColumnsAWarp = kColumnLanes * 4;
constexpr int kMaxDim = 128;
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

// What one lane needs of one row. Rows of the state that are beyond dk have q = k = 0.
template <int kRows>
struct RowInputs {
  float q[kRows], k[kRows];
  float4 v;
  float decay, beta;
};

// The places of one lane: state rows group, group + kGroups, ... and columns column .. column + 3.
struct Place {
  int head;
  int group;
  int column;
};

// Of one row: mixed [channels], decay and beta [Hv].
template <int kRows>
__device__ RowInputs<kRows> Load(const DeltaShape& shape, const Place& place, const float* mixed,
                                 const float* decay, const float* beta) {
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

// The sum over the row groups, in every lane of a column.
__device__ float GroupSum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset >= kColumnLanes; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

// S = decay S + k (beta (v - decay k^T S)); returns q^T S. Both sums over rows are of the old
// state: q^T S = decay q^T S_old + (q k) change, one pass instead of two.
template <int kRows>
__device__ float4 Update(const RowInputs<kRows>& in, float (&state)[kRows][4]) {
  float kept[4] = {}, asked[4] = {}, qk = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    qk += in.q[r] * in.k[r];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      kept[c] += in.k[r] * state[r][c];
      asked[c] += in.q[r] * state[r][c];
    }
  }
  qk = GroupSum(qk);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    kept[c] = GroupSum(kept[c]);
    asked[c] = GroupSum(asked[c]);
  }
  const float v[4] = {in.v.x, in.v.y, in.v.z, in.v.w};
  float change[4], out[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    change[c] = in.beta * (v[c] - in.decay * kept[c]);
    out[c] = in.decay * asked[c] + qk * change[c];
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) state[r][c] = in.decay * state[r][c] + in.k[r] * change[c];
  }
  return {out[0], out[1], out[2], out[3]};
}

// One block owns a head's columns, or a part of them (blockIdx.z), of one sequence (y); each of its
// warps 8 columns, on its own. The state is in registers from the first row to the last.
template <int kRows, bool kIsNormed>
__global__ void __launch_bounds__(kMaxDim / kColumnsAWarp * kWarp) DeltaRuleKernel(DeltaArgs args) {
  static_assert(kRows >= 1 && kRows * kGroups <= kMaxDim);
  __shared__ float whole[kMaxDim];  // a head's output, for the norm
  // Past the L1: written by kernels before the one in front, which may not have ended.
  float* const states = reinterpret_cast<float*>(
      __ldcg(reinterpret_cast<const unsigned long long*>(args.states + blockIdx.y)));
  const DeltaShape& shape = args.shape;
  const int dk = shape.key_dim, dv = shape.value_dim;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_column = static_cast<int>(blockIdx.z * (blockDim.x / kWarp)) * kColumnsAWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Place place{.head = static_cast<int>(blockIdx.x),
                    .group = lane / kColumnLanes,
                    .column = first_column + warp * kColumnsAWarp + lane % kColumnLanes * 4};
  const bool is_mine = states != nullptr && place.column < dv;
  const int n_rows = args.rows.n_rows;
  const int64_t first_row = int64_t{blockIdx.y} * n_rows;

  // Read the state, while earlier kernels end.
  float* const home = states + int64_t{place.head} * dk * dv + place.column;
  float state[kRows][4];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = place.group + r * kGroups;
    const float4 row = is_mine && i < dk
                           ? __ldcg(reinterpret_cast<const float4*>(home + int64_t{i} * dv))
                           : float4{0, 0, 0, 0};
    state[r][0] = row.x, state[r][1] = row.y, state[r][2] = row.z, state[r][3] = row.w;
  }

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
    const float4 out = Update<kRows>(in, state);
    if (i + 1 == n - drafts.n) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int state_row = place.group + r * kGroups;
        if (!is_mine || state_row >= dk) continue;
        *reinterpret_cast<float4*>(home + int64_t{state_row} * dv) =
            float4{state[r][0], state[r][1], state[r][2], state[r][3]};
      }
    }
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
      NormHead(shape, {args.qkvz, args.norm, args.eps, args.rounded}, place.head, first_row, whole,
               args.out + (first_row * shape.value_heads + place.head) * dv);
    }
  }
}

// One warp (and block) a head of a row; in place.
__global__ void __launch_bounds__(kWarp) GatedNormKernel(DeltaArgs args) {
  const int64_t row = blockIdx.y;
  JoinChain();
  if (args.states[row / args.rows.n_rows] == nullptr) return;
  const int head = static_cast<int>(blockIdx.x);
  float* const at = args.out + (row * args.shape.value_heads + head) * args.shape.value_dim;
  NormHead(args.shape, {args.qkvz, args.norm, args.eps, args.rounded}, head, row, at, at);
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
      shape.key_dim > kMaxDim || shape.value_dim < 4 || shape.value_dim % 4 != 0 ||
      shape.value_dim > kMaxDim || (rounded.words != nullptr && shape.value_dim % 64 != 0) ||
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
