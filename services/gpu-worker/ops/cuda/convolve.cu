#include "services/gpu-worker/ops/cuda/convolve_unit.cuh"
#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kRowsAWarp = 8;  // of prefill; the three rows before them are read again

struct ConvolveArgs {
  DeltaShape shape;
  SequenceRows rows;
  ConvolveWeights weights;
  const float* qkvz;
  const float* ba;
  float* const* histories;
  DeltaInputs to;
};

// `kept` [channels | Hv | Hv]: where the row is kept too, if it is.
__device__ void WriteGates(const ConvolveArgs& args, int value_head, int64_t row, float* kept) {
  const DeltaGates gates = GatesOf(args.shape, args.weights, args.ba, value_head, row);
  const int64_t at = row * args.shape.value_heads + value_head;
  args.to.beta[at] = gates.beta;
  args.to.decay[at] = gates.decay;
  if (kept == nullptr) return;
  kept += KeptRowFloats(args.shape) - 2 * args.shape.value_heads + value_head;
  kept[0] = gates.decay;
  kept[args.shape.value_heads] = gates.beta;
}

// One warp (and block) owns a unit of one sequence over kRowsAWarp rows: blockIdx.x is the unit, y
// the sequence, z the stretch of rows. Lane l owns channels l, l + 32, ... and slides over the
// rows, all of which are on their way at once. The first stretch reads the history and then
// replaces it.
template <int kPerLane>
__global__ void __launch_bounds__(kWarp) ConvolveKernel(ConvolveArgs args) {
  static_assert(kPerLane >= 1 && kPerLane <= 8);
  const int lane = static_cast<int>(threadIdx.x);
  const DeltaShape& shape = args.shape;
  const ConvolveUnit unit = UnitOf(shape, static_cast<int>(blockIdx.x));
  const int64_t channels =
      2 * shape.key_heads * shape.key_dim + shape.value_heads * shape.value_dim;
  const int64_t row_size = channels + int64_t{shape.value_heads} * shape.value_dim;
  const int n_rows = args.rows.n_rows;
  const int64_t first_row = int64_t{blockIdx.y} * n_rows;  // of the sequence
  const int begin = static_cast<int>(blockIdx.z) * kRowsAWarp;
  const int end = min(begin + kRowsAWarp, n_rows);
  const int n_past = args.weights.width - 1;
  const float* const input = args.qkvz + first_row * row_size + unit.from;

  // The weights, while earlier kernels end.
  float kernel[kPerLane][kMaxConvolution];
  LoadTaps(args.weights, unit, channels, lane, kernel);
  JoinChain();
  float* const history = args.histories[blockIdx.y];
  if (history == nullptr) return;
  const DeltaDrafts& drafts = args.to.drafts;
  const int n_pending = drafts.n_pending != nullptr ? drafts.n_pending[blockIdx.y] : 0;
  const float* const past = history + n_pending * channels;
  // Where row t is kept, if it is.
  const auto kept_at = [&](int t) {
    return t < n_rows - drafts.n
               ? nullptr
               : drafts.kept[blockIdx.y] + (t - n_rows + drafts.n) * KeptRowFloats(shape);
  };

  // Input of row t of the sequence, which may be one before its first.
  const auto input_at = [&](int t, int channel) {
    if (t >= 0) return input[t * row_size + channel];
    return t + n_past >= 0 ? past[(t + n_past) * channels + unit.to + channel] : 0.f;
  };

  // The window before the first row.
  float window[kPerLane][kPast];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int channel = lane + i * kWarp;
#pragma unroll
    for (int p = 0; p < kPast; ++p) {
      window[i][p] = channel < unit.width ? input_at(begin + p - kPast, channel) : 0.f;
    }
  }

  // The rows' inputs.
  float newest[kRowsAWarp][kPerLane];
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int channel = lane + i * kWarp;
      const bool is_there = channel < unit.width && begin + r < end;
      newest[r][i] = is_there ? input[(begin + r) * row_size + channel] : 0.f;
    }
  }

#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) {
    const int t = begin + r;
    if (t >= end) break;
    float value[kPerLane];
    ConvolveRow(unit, kernel, window, newest[r], value);
    float* const to = args.to.mixed + (first_row + t) * channels + unit.to;
    float* const kept = kept_at(t);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int channel = lane + i * kWarp;
      if (channel < unit.width) {
        to[channel] = value[i];
        if (kept != nullptr) kept[unit.to + channel] = value[i];
      }
#pragma unroll
      for (int p = 0; p + 1 < kPast; ++p) window[i][p] = window[i][p + 1];
      window[i][kPast - 1] = newest[r][i];
    }
  }
  // Gates: a lane has a row.
  static_assert(kRowsAWarp <= kWarp);
  if (unit.value_head >= 0 && begin + lane < end) {
    WriteGates(args, unit.value_head, first_row + begin + lane, kept_at(begin + lane));
  }

  // History: the last inputs of the sequence, those of drafts beyond the others. Only this lane
  // reads or writes these channels of it, from its oldest row on, and row p is never read after it
  // was written.
  if (blockIdx.z != 0) return;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int channel = lane + i * kWarp;
    if (channel >= unit.width) continue;
    for (int p = 0; p < n_past + drafts.n; ++p) {
      history[p * channels + unit.to + channel] = input_at(n_rows - drafts.n - n_past + p, channel);
    }
  }
}

}  // namespace

cudaError_t ConvolveCuda(const DeltaShape& shape, const SequenceRows& rows,
                         const ConvolveWeights& weights, const float* qkvz, const float* ba,
                         float* const* histories, const DeltaInputs& to, cudaStream_t stream) {
  const int widest = shape.key_dim > shape.value_dim ? shape.key_dim : shape.value_dim;
  if (rows.n_sequences < 0 || rows.n_rows < 0 || weights.width < 2 ||
      weights.width > kMaxConvolution || shape.key_heads < 1 ||
      shape.value_heads % shape.key_heads != 0 || widest > 8 * kWarp || to.drafts.n < 0 ||
      (to.drafts.n > 0 && to.drafts.n >= rows.n_rows)) {
    return cudaErrorInvalidValue;
  }
  if (rows.total() == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(2 * shape.key_heads + shape.value_heads),
                  static_cast<unsigned>(rows.n_sequences),
                  static_cast<unsigned>((rows.n_rows + kRowsAWarp - 1) / kRowsAWarp));
  const ConvolveArgs args{shape, rows, weights, qkvz, ba, histories, to};
  auto* const kernel_for = widest <= kWarp       ? ConvolveKernel<1>
                           : widest <= 4 * kWarp ? ConvolveKernel<4>
                                                 : ConvolveKernel<8>;
  return Launch(kernel_for, {.grid = grid, .threads = kWarp, .stream = stream}, args);
}

}  // namespace hearth::worker
