// What a block of attention.cu does with its stretch of positions. Only for .cu files.
#pragma once

#include <cstdint>

#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/kv_ring.cuh"
#include "services/gpu-worker/ops/cuda/rotary_head.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {

inline constexpr int kAttentionWarps = 4;
static_assert(kFirstStretch % (kAttentionWarps * kPositions) == 0);

struct AttentionArgs {
  AttentionShape shape;
  SequenceRows rows;
  const int64_t* positions;
  const float* q;
  const float* query_gate;
  DeviceKv kv;
  int max_parts;
  float* sums;    // [rows, max_parts, H, d], not divided
  float* totals;  // [rows, max_parts, H, 2]: largest score, sum of exponentials
  float* out;
  RoundedRows rounded;
  NewPosition made;  // where q is yet to be made
};

// Adds up 32 values over the warp: lane i gets the sum of values[i]. 31 shuffles instead of 160.
// Each step halves the values that a lane still adds up, and hands the others to its partner.
template <int kHalf = kWarp / 2>
__device__ inline float TransposedSum(float (&values)[kWarp]) {
  const bool is_upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float give = is_upper ? values[i] : values[i + kHalf];
    const float keep = is_upper ? values[i + kHalf] : values[i];
    values[i] = keep + __shfl_xor_sync(kAllLanes, give, kHalf);
  }
  if constexpr (kHalf > 1) return TransposedSum<kHalf / 2>(values);
  return values[0];
}

// What a warp has summed of 8 queries. Dimensions kDims * lane .. + kDims - 1 of every query are
// this lane's; `largest` is query lane % 8's, `total` this lane's part of its sum.
template <int kDims>
struct Sums {
  float acc[kQueries][kDims] = {};
  float largest = -INFINITY;
  float total = 0;
};

// Adds the 4 positions of a stage, those below `n` of them. `shared` [40] is this warp's.
template <typename T, int kDims>
__device__ inline void AddPositions(const uint8_t* stage, int n, const float (&q)[kQueries][kDims],
                                    float* shared, Sums<kDims>& sums) {
  using Ring = KvRing<T, kDims>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint8_t* const mine = stage + lane * kDims * static_cast<int>(sizeof(T));
  const auto* const scales = reinterpret_cast<const float*>(stage + 2 * kPositions * Ring::kRow);

  // Scores: lane p * 8 + j gets that of position p and query j.
  float products[kWarp];
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    KvVector<T, kDims> raw;
    raw.Load(mine + p * Ring::kRow);
    float k[kDims];
    raw.ToFloats(k);
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kDims; ++i) sum += q[j][i] * k[i];
      products[p * kQueries + j] = sum;
    }
  }
  float score = TransposedSum(products);
  if constexpr (sizeof(T) == 1) score *= scales[lane / kQueries];
  if (lane / kQueries >= n) score = -INFINITY;

  // Weights, by the running maximum. The first position exists, so that the maximum is finite.
  float largest = fmaxf(sums.largest, score);
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, kQueries));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2 * kQueries));
  const float shrink = expf(sums.largest - largest);  // 0 at first
  const float weight = expf(score - largest);
  const bool has_grown = __any_sync(kAllLanes, largest > sums.largest);
  sums.total = sums.total * shrink + weight;
  sums.largest = largest;
  __syncwarp();  // the last call's weights have been read
  shared[lane] = sizeof(T) == 1 ? weight * scales[kPositions + lane / kQueries] : weight;
  if (lane < kQueries) shared[kWarp + lane] = shrink;
  __syncwarp();  // every lane's weight is there

  // Values.
  const auto eight = [&](int first, float(&to)[kQueries]) {
    const float4 low = *reinterpret_cast<const float4*>(shared + first);
    const float4 high = *reinterpret_cast<const float4*>(shared + first + 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
  };
  float by[kQueries];
  if (has_grown) {
    eight(kWarp, by);
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
#pragma unroll
      for (int i = 0; i < kDims; ++i) sums.acc[j][i] *= by[j];
    }
  }
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    KvVector<T, kDims> raw;
    raw.Load(mine + (kPositions + p) * Ring::kRow);
    float v[kDims];
    raw.ToFloats(v);
    eight(p * kQueries, by);
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
#pragma unroll
      for (int i = 0; i < kDims; ++i) sums.acc[j][i] += by[j] * v[i];
    }
  }
}

// The block's queries, normed and rotated, and its own position's key and value on their way to the
// page; the block together, and a barrier must follow.
template <typename T, int kHead>
__device__ inline void MakeRow(const AttentionArgs& args, int64_t row, int kv_head, int n_queries,
                               bool has_newest, float (&queries)[kQueries][kHead],
                               float (&key)[kHead]) {
  const AttentionShape& shape = args.shape;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int share = shape.n_heads / shape.n_kv_heads;
  const int64_t position = args.positions[row];
  float values[kHeadValues];
  for (int j = warp; j < n_queries; j += kAttentionWarps) {
    const int64_t head = row * shape.n_heads + kv_head * share + j;
    LoadHeadValues(args.query_gate + head * 2 * kHead, kHead, values);
    NormAndRotate({kHead, args.made.norms.q_norm, args.made.norms.eps, args.made.rotary}, position,
                  values, queries[j]);
  }
  if (!has_newest || warp < kAttentionWarps - 2) return;
  const bool is_value = warp == kAttentionWarps - 1;
  const int64_t from = (row * shape.n_kv_heads + kv_head) * kHead;
  LoadHeadValues((is_value ? args.made.v : args.made.k) + from, kHead, values);
  if (!is_value) {
    NormAndRotate({kHead, args.made.norms.k_norm, args.made.norms.eps, args.made.rotary}, position,
                  values, key);
  }
  StoreKvHead<T>(args.kv, is_value, KvOffset(args.kv, shape, row, position, kv_head), kHead,
                 values);
  __threadfence();  // the ring reads past the L1
}

}  // namespace hearth::worker
