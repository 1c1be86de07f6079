// The delta net of a decode step in one launch. The arithmetic is that of convolve.cu and
// delta_rule.cu, function for function, so that the bits are too.
#include "services/gpu-worker/ops/cuda/convolve_unit.cuh"
#include "services/gpu-worker/ops/cuda/copy_async.cuh"
#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/delta_norm.cuh"
#include "services/gpu-worker/ops/cuda/delta_update.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kPerLane = kMaxDeltaDim / kWarp;
// Warps 0 to 2 convolve the head's q, k and v; the one behind them has the gates and the norm.
constexpr int kConvolved = 3, kNormWarp = 3, kLeastWarps = 4;

struct Args {
  DeltaShape shape;
  DeltaStep step;
  float* out;
  RoundedRows rounded;
};

// A pointer of a sequence's table, past the L1: kernels before the one in front wrote it.
__device__ inline float* PointerAt(float* const* table, int at) {
  return reinterpret_cast<float*>(__ldcg(reinterpret_cast<const unsigned long long*>(table + at)));
}

// The state's way to its lane, which alone writes and reads its places: through shared memory, so
// that the registers are free until it is needed and a block fits beside one of the linears in
// front.
template <int kRows>
__device__ void AskForState(const float* home, const DeltaPlace& place, bool is_mine, int dk,
                            int dv, float4* mine) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = place.group + r * kGroups;
    float4* const to = mine + r * static_cast<int>(blockDim.x);
    if (is_mine && i < dk) {
      CopyAsync16(to, home + int64_t{i} * dv);
    } else {
      *to = float4{0, 0, 0, 0};
    }
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kRows>
__device__ void TakeState(const float4* mine, float (&state)[kRows][4]) {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float4 row = mine[r * static_cast<int>(blockDim.x)];
    state[r][0] = row.x, state[r][1] = row.y, state[r][2] = row.z, state[r][3] = row.w;
  }
}

// One block owns a head of one sequence (y): each of its warps 8 columns of the state. q and k, and
// their histories, belong to several heads: the last of their blocks to have read the history moves
// it on.
template <int kRows>
__global__ void __launch_bounds__(kMaxDeltaDim / kColumnsAWarp * kWarp, 2)
    DeltaStepKernel(const __grid_constant__ Args args) {
  static_assert(kRows >= 1 && kRows * kGroups <= kMaxDeltaDim);
  extern __shared__ __align__(16) float4 shared[];  // [kRows][threads]: the state
  __shared__ float convolved[kConvolved][kMaxDeltaDim];
  // What a warp comes back to at the end: the histories' next rows, z and the norm's weights.
  __shared__ float kept[kConvolved][kPast][kMaxDeltaDim], z[kMaxDeltaDim], norm[kMaxDeltaDim];
  __shared__ __align__(16) float whole[kMaxDeltaDim];  // the head's output, for the norm
  __shared__ DeltaGates gates;
  __shared__ bool moves_keys;

  const DeltaShape& shape = args.shape;
  const DeltaStep& step = args.step;
  const int dk = shape.key_dim, dv = shape.value_dim, share = shape.value_heads / shape.key_heads;
  const int head = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.y);
  const int key_head = head / share;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const DeltaPlace place{.head = head,
                         .group = lane / kColumnLanes,
                         .column = warp * kColumnsAWarp + lane % kColumnLanes * 4};
  float* const states = PointerAt(step.states, sequence);
  float* const history = PointerAt(step.histories, sequence);
  const bool is_mine = states != nullptr && place.column < dv;
  const int64_t channels = 2 * shape.key_heads * dk + shape.value_heads * dv;

  // Stage 1: what no kernel in front writes: the state, the history, weights.
  float* const home = states + int64_t{head} * dk * dv + place.column;
  AskForState<kRows>(home, place, is_mine, dk, dv, shared + threadIdx.x);
  ConvolveUnit unit = {};
  float kernel[kPerLane][kMaxConvolution], window[kPerLane][kPast];
  if (warp < kConvolved) {
    unit = UnitOf(shape, warp == 0   ? key_head
                         : warp == 1 ? shape.key_heads + key_head
                                     : 2 * shape.key_heads + head);
    LoadTaps(step.weights, unit, channels, lane, kernel);
    const int n_past = step.weights.width - 1;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int channel = lane + i * kWarp;
#pragma unroll
      for (int p = 0; p < kPast; ++p) {
        const int at = p - (kPast - n_past);
        window[i][p] = history != nullptr && channel < unit.width && at >= 0
                           ? __ldcg(history + at * channels + unit.to + channel)
                           : 0.f;
      }
    }
  } else if (warp == kNormWarp) {
    StoreHead(LoadHead(step.norm, dv), norm);
  }
  JoinChain();
  if (states == nullptr) return;  // the whole block

  // Stage 2: q, k, v and the gates.
  const int64_t row = sequence;
  float newest[kPerLane];
  if (warp < kConvolved) {
    const float* const input =
        step.qkvz + row * (channels + int64_t{shape.value_heads} * dv) + unit.from;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int channel = lane + i * kWarp;
      newest[i] = channel < unit.width ? input[channel] : 0.f;
    }
    float value[kPerLane];
    ConvolveRow(unit, kernel, window, newest, value);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int channel = lane + i * kWarp;
      convolved[warp][channel] = value[i];
#pragma unroll
      for (int p = 0; p + 1 < kPast; ++p) kept[warp][p][channel] = window[i][p + 1];
      kept[warp][kPast - 1][channel] = newest[i];
    }
  } else if (warp == kNormWarp) {
    StoreHead(LoadZ(shape, step.qkvz, head, row), z);
    if (lane == 0) gates = GatesOf(shape, step.weights, step.ba, head, row);
  }
  __syncthreads();  // orders q, k, v and gates before their readers; the history has been read
  unsigned arrived = 0;
  if (threadIdx.x == 0 && share > 1) {
    __threadfence();
    arrived = atomicInc(step.arrivals + row * shape.key_heads + key_head,
                        static_cast<unsigned>(share - 1));
  }

  // Stage 3: the state.
  float state[kRows][4];
  TakeState<kRows>(shared + threadIdx.x, state);
  RowInputs<kRows> in;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = place.group + r * kGroups;
    in.q[r] = i < dk ? convolved[0][i] : 0.f;
    in.k[r] = i < dk ? convolved[1][i] : 0.f;
  }
  const float* const v = convolved[2] + place.column;
  in.v = is_mine ? float4{v[0], v[1], v[2], v[3]} : float4{0, 0, 0, 0};
  in.decay = gates.decay;
  in.beta = gates.beta;
  const float4 out = UpdateState<kRows>(in, state);
  if (is_mine && place.group == 0) *reinterpret_cast<float4*>(whole + place.column) = out;
  if (threadIdx.x == 0) moves_keys = arrived == static_cast<unsigned>(share - 1);
  __syncthreads();  // orders `whole` and `moves_keys` before their readers

  // Stage 4: norm, and what is kept.
  if (warp == kNormWarp) {
    NormHead(shape, {step.qkvz, step.norm, step.eps, args.rounded}, head, row, LoadHead(whole, dv),
             LoadHead(z, dv), LoadHead(norm, dv), args.out + (row * shape.value_heads + head) * dv);
  }
  StoreState(state, place, is_mine, dk, dv, home);
  if (warp >= kConvolved || (warp < 2 && !moves_keys)) return;
  const int n_past = step.weights.width - 1;
  for (int channel = lane; channel < unit.width; channel += kWarp) {
    for (int p = 0; p < n_past; ++p) {
      history[p * channels + unit.to + channel] = kept[warp][kPast - n_past + p][channel];
    }
  }
}

}  // namespace

cudaError_t DeltaStepCuda(const DeltaShape& shape, int n_sequences, const DeltaStep& step,
                          float* out, const RoundedRows& rounded, cudaStream_t stream) {
  if (n_sequences < 0 || n_sequences > 65535 || step.weights.width < 2 ||
      step.weights.width > kMaxConvolution || shape.key_heads < 1 ||
      shape.value_heads % shape.key_heads != 0 || shape.key_dim < 1 ||
      shape.key_dim > kMaxDeltaDim || shape.value_dim < 4 || shape.value_dim % 4 != 0 ||
      shape.value_dim > kMaxDeltaDim || (rounded.words != nullptr && shape.value_dim % 64 != 0)) {
    return cudaErrorInvalidValue;
  }
  if (n_sequences == 0) return cudaSuccess;
  const int all_warps = (shape.value_dim + kColumnsAWarp - 1) / kColumnsAWarp;
  const int warps = all_warps < kLeastWarps ? kLeastWarps : all_warps;
  const int rows = (shape.key_dim + kGroups - 1) / kGroups;
  auto* const kernel = rows <= 2   ? DeltaStepKernel<2>
                       : rows <= 4 ? DeltaStepKernel<4>
                                   : DeltaStepKernel<8>;
  const Args args{shape, step, out, rounded};
  return Launch(
      kernel,
      {.grid = dim3(static_cast<unsigned>(shape.value_heads), static_cast<unsigned>(n_sequences)),
       .threads = static_cast<unsigned>(warps * kWarp),
       .shared_bytes = static_cast<size_t>(sizeof(float4) * kWarp * warps *
                                           (rows <= 2   ? 2
                                            : rows <= 4 ? 4
                                                        : 8)),
       .stream = stream},
      args);
}

}  // namespace hearth::worker
