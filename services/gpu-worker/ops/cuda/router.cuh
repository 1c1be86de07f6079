// The router's choice for one row, by one warp. Only for .cu files.
#pragma once

#include <climits>
#include <cstdint>

#include "services/gpu-worker/ops/cuda/router_cuda.h"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {

inline constexpr unsigned kTaken = 0;  // below the key of every finite number

// Unsigned numbers in the order of the floats; -0 is 0, so that they tie.
__device__ inline unsigned KeyOf(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float ValueOf(unsigned key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

struct RoutedPlace {
  int32_t id = 0;
  float weight = 0;
};

// Lane l owns experts l, l + 32, l + 64, ... of the row's logits; lane k < K returns the k-th
// choice.
template <int kPerLane>
__device__ inline RoutedPlace RouteRow(const RouterShape& shape, bool normalise,
                                       const float* logits, int lane) {
  static_assert(kPerLane >= 1 && kPerLane <= 32);
  // Softmax over all experts: the largest logit and the sum.
  unsigned keys[kPerLane];
  unsigned largest_key = kTaken;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane + i * kWarp;
    keys[i] = expert < shape.n_experts ? KeyOf(logits[expert]) : kTaken;
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
  return {kept_id, normalise ? kept / chosen : kept};
}

}  // namespace hearth::worker
