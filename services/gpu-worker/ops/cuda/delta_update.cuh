// One row of the recurrent delta rule on a state that lies in registers. Only for .cu files.
#pragma once

#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {

// A warp owns 8 columns of a state: 2 lanes of 4 columns each times 16 groups of rows, so that one
// load of the warp takes 16 whole sectors of 32 bytes, and the sums over rows stay in the warp.
inline constexpr int kColumnLanes = 2;
inline constexpr int kGroups = kWarp / kColumnLanes;
inline constexpr int kColumnsAWarp = kColumnLanes * 4;
inline constexpr int kMaxDeltaDim = 128;

// What one lane needs of one row. Rows of the state that are beyond dk have q = k = 0.
template <int kRows>
struct RowInputs {
  float q[kRows], k[kRows];
  float4 v;
  float decay, beta;
};

// The places of one lane: state rows group, group + kGroups, ... and columns column .. column + 3.
struct DeltaPlace {
  int head;
  int group;
  int column;
};

// The lane's part of a head's state [dk, dv], which begins at its column; zeros where it has none.
template <int kRows>
__device__ inline void LoadState(const float* home, const DeltaPlace& place, bool is_mine, int dk,
                                 int dv, float (&state)[kRows][4]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = place.group + r * kGroups;
    const float4 row = is_mine && i < dk
                           ? __ldcg(reinterpret_cast<const float4*>(home + int64_t{i} * dv))
                           : float4{0, 0, 0, 0};
    state[r][0] = row.x, state[r][1] = row.y, state[r][2] = row.z, state[r][3] = row.w;
  }
}
template <int kRows>
__device__ inline void StoreState(const float (&state)[kRows][4], const DeltaPlace& place,
                                  bool is_mine, int dk, int dv, float* home) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = place.group + r * kGroups;
    if (!is_mine || i >= dk) continue;
    *reinterpret_cast<float4*>(home + int64_t{i} * dv) =
        float4{state[r][0], state[r][1], state[r][2], state[r][3]};
  }
}

// The sum over the row groups, in every lane of a column.
__device__ inline float GroupSum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset >= kColumnLanes; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

// S = decay S + k (beta (v - decay k^T S)); returns q^T S. Both sums over rows are of the old
// state: q^T S = decay q^T S_old + (q k) change, one pass instead of two. Fused multiplications are
// spelled out: two kernels that call it give the same bits.
template <int kRows>
__device__ inline float4 UpdateState(const RowInputs<kRows>& in, float (&state)[kRows][4]) {
  float kept[4] = {}, asked[4] = {}, qk = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    qk = fmaf(in.q[r], in.k[r], qk);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      kept[c] = fmaf(in.k[r], state[r][c], kept[c]);
      asked[c] = fmaf(in.q[r], state[r][c], asked[c]);
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
    change[c] = in.beta * fmaf(-in.decay, kept[c], v[c]);
    out[c] = fmaf(in.decay, asked[c], __fmul_rn(qk, change[c]));
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      state[r][c] = fmaf(in.k[r], change[c], __fmul_rn(in.decay, state[r][c]));
    }
  }
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace hearth::worker
