// One head of a row by one warp: norm, rotary and the way into a page. Only for .cu files.
#pragma once

#include <cstdint>
#include <type_traits>

#include "services/gpu-worker/ops/cuda/kv_pages.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kHeadValues = kMaxHeadDim / kWarp;  // of a lane

// Cosine and sine of position * frequency. The angle reaches 1e6, so that it is brought below half
// a turn in double; the sine of that needs no more than float.
__device__ inline float2 Turn(const DeviceRotary& rotary, int64_t position, int j) {
  constexpr double kTurnsARadian = 0.15915494309189533577;
  const double turns =
      static_cast<double>(position) * rotary.inverse_frequencies[j] * kTurnsARadian;
  float sine, cosine;
  sincospif(static_cast<float>(2 * (turns - rint(turns))), &sine, &cosine);
  const auto scale = static_cast<float>(rotary.scale);
  return {cosine * scale, sine * scale};
}

struct HeadRotation {
  int d;
  const float* norm;  // [d]
  float eps;
  DeviceRotary rotary;
};

// Norm with weight 1 + w and rotation of one head by one warp: values[i] is that of dimension
// lane + 32 i. `shared` [d] is this warp's, and gets the values too. Fused multiplications are
// spelled out: two kernels that call it give the same bits.
__device__ inline void NormAndRotate(const HeadRotation& args, int64_t position,
                                     float (&values)[kHeadValues], float* shared) {
  const int d = args.d, half = args.rotary.half;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kHeadValues; ++i) squares = fmaf(values[i], values[i], squares);
  const float scale = 1 / sqrtf(WarpSum(squares) / static_cast<float>(d) + args.eps);
#pragma unroll
  for (int i = 0; i < kHeadValues; ++i) {
    const int dim = lane + i * kWarp;
    if (dim < d) shared[dim] = values[i] * scale * (1 + args.norm[dim]);
  }
  __syncwarp();  // pairs lie in different lanes
  for (int j = lane; j < half; j += kWarp) {
    const float2 turn = Turn(args.rotary, position, j);
    const float a = shared[j], b = shared[j + half];
    shared[j] = fmaf(a, turn.x, __fmul_rn(-b, turn.y));
    shared[j + half] = fmaf(b, turn.x, __fmul_rn(a, turn.y));
  }
  __syncwarp();  // back to the lanes that own them
#pragma unroll
  for (int i = 0; i < kHeadValues; ++i) {
    const int dim = lane + i * kWarp;
    if (dim < d) values[i] = shared[dim];
  }
}

// values[i] of `from` [d]; zeros beyond it.
__device__ inline void LoadHeadValues(const float* from, int d, float (&values)[kHeadValues]) {
#pragma unroll
  for (int i = 0; i < kHeadValues; ++i) {
    const int dim = static_cast<int>(threadIdx.x) % kWarp + i * kWarp;
    values[i] = dim < d ? from[dim] : 0.f;
  }
}

// A head's keys or values to their place in a page, `at` of KvOffset.
template <typename T>
__device__ inline void StoreKvHead(const DeviceKv& kv, bool is_value, int64_t at, int d,
                                   const float (&values)[kHeadValues]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  T* const pool = static_cast<T*>(is_value ? kv.values : kv.keys);
  float inverse = 1;
  if constexpr (std::is_same_v<T, int8_t>) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kHeadValues; ++i) largest = fmaxf(largest, fabsf(values[i]));
    largest = WarpMax(largest);
    inverse = largest > 0 ? 127 / largest : 0.f;
    float* const scales = is_value ? kv.value_scales : kv.key_scales;
    if (lane == 0) scales[at / d] = largest / 127;
  }
#pragma unroll
  for (int i = 0; i < kHeadValues; ++i) {
    const int dim = lane + i * kWarp;
    if (dim < d) StoreKvValue(values[i] * inverse, pool + at + dim);
  }
}

}  // namespace hearth::worker
