// What one warp of the delta net's convolution owns, and the gates beside it. Only for .cu files.
#pragma once

#include <cstdint>

#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {

inline constexpr int kMaxConvolution = 4;  // its width; shorter ones have zeros in front
inline constexpr int kPast = kMaxConvolution - 1;
inline constexpr float kL2Eps = 1e-6f;

// One head's q, k or v: where its first channel lies in a row of qkvz and in a row of mixed.
struct ConvolveUnit {
  int from;
  int to;
  int width;
  bool is_normalised;
  float scale;     // after the norm
  int value_head;  // -1 for q and k
};

// Units are the q of all key heads, then their k, then the v of all value heads.
__device__ inline ConvolveUnit UnitOf(const DeltaShape& shape, int unit) {
  const int dk = shape.key_dim, dv = shape.value_dim;
  const int share = shape.value_heads / shape.key_heads;
  const int group = 2 * dk + 2 * share * dv;
  const int n_keys = shape.key_heads * dk;
  if (unit < shape.key_heads) {
    return {unit * group, unit * dk, dk, true, 1 / sqrtf(static_cast<float>(dk)), -1};
  }
  unit -= shape.key_heads;
  if (unit < shape.key_heads) return {unit * group + dk, n_keys + unit * dk, dk, true, 1, -1};
  unit -= shape.key_heads;
  return {unit / share * group + 2 * dk + unit % share * dv,
          2 * n_keys + unit * dv,
          dv,
          false,
          1,
          unit};
}

// kernel[i][w] is tap w of channel lane + 32 i of the unit.
template <int kPerLane>
__device__ inline void LoadTaps(const ConvolveWeights& weights, const ConvolveUnit& unit,
                                int64_t channels, int lane,
                                float (&kernel)[kPerLane][kMaxConvolution]) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int channel = lane + i * kWarp;
#pragma unroll
    for (int w = 0; w < kMaxConvolution; ++w) {
      const int tap = w - (kMaxConvolution - weights.width);
      kernel[i][w] = channel < unit.width && tap >= 0
                         ? weights.kernel[tap * channels + unit.to + channel]
                         : 0.f;
    }
  }
}

// One row of the unit: convolution, SiLU and norm; `window` is the rows before it, oldest first.
template <int kPerLane>
__device__ inline void ConvolveRow(const ConvolveUnit& unit,
                                   const float (&kernel)[kPerLane][kMaxConvolution],
                                   const float (&window)[kPerLane][kPast],
                                   const float (&newest)[kPerLane], float (&value)[kPerLane]) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    float sum = 0;
#pragma unroll
    for (int p = 0; p < kPast; ++p) sum = fmaf(kernel[i][p], window[i][p], sum);
    value[i] = SiluOf(fmaf(kernel[i][kPast], newest[i], sum));
    squares = fmaf(value[i], value[i], squares);
  }
  const float factor = unit.is_normalised ? unit.scale / sqrtf(WarpSum(squares) + kL2Eps) : 1.f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) value[i] *= factor;
}

struct DeltaGates {
  float decay;  // exp(g)
  float beta;   // sigmoid(b)
};
__device__ inline DeltaGates GatesOf(const DeltaShape& shape, const ConvolveWeights& weights,
                                     const float* ba, int value_head, int64_t row) {
  const int share = shape.value_heads / shape.key_heads;
  const float* const gates =
      ba + (row * shape.key_heads + value_head / share) * 2 * share + value_head % share;
  return {expf(-expf(weights.a_log[value_head]) *
               SoftplusOf(gates[share] + weights.dt_bias[value_head])),
          SigmoidOf(gates[0])};
}

}  // namespace hearth::worker
