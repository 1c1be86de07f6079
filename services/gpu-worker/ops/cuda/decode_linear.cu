#include <algorithm>

#include "services/gpu-worker/ops/cuda/decode_linear.h"
#include "services/gpu-worker/ops/cuda/decode_linear_jobs.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/mma_tile.cuh"
#include "services/gpu-worker/ops/cuda/norm_row.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

using namespace decode_linear;

using Partial = float[kWarps][kMmaRows][kWidth];

// Norms the rows and gives each thread's four values to take(row, values, whether it has any); the
// block together. The first block writes down what the norm writes.
static_assert(kThreads == kNormThreads && kMaxNormedWidth == 4 * kNormThreads);
template <int kRows, typename Take>
__device__ void NormRows(const Args& args, const float4& weight, Take take) {
  static_assert(kRows <= kMaxNormedRows);
  __shared__ float sums[kRows][kWarps];
  const NormBefore& norm = args.norm;
  const int n_vectors = args.in / 4, at = static_cast<int>(threadIdx.x);
  const bool is_there = at < n_vectors;
  float4 mine[kRows], delta[kRows];
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    const int64_t place = int64_t{t} * n_vectors + at;
    mine[t] = delta[t] = {0, 0, 0, 0};
    if (!is_there) continue;
    mine[t] = reinterpret_cast<const float4*>(norm.x)[place];
    if (norm.delta != nullptr) delta[t] = reinterpret_cast<const float4*>(norm.delta)[place];
  }
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    if (norm.delta != nullptr) mine[t] = Added(mine[t], delta[t]);
    const float squares = is_there ? AddSquares(mine[t], 0.f) : 0.f;
    const float scale = NormScale(BlockSum(squares, sums[t]), args.in, norm.eps);
    const float4 v = is_there ? Normed(mine[t], scale, weight) : float4{0, 0, 0, 0};
    take(t, v, is_there);
    if (blockIdx.x != 0) continue;
    const int64_t place = int64_t{t} * n_vectors + at;
    if (is_there) {
      if (norm.delta != nullptr) reinterpret_cast<float4*>(norm.sum)[place] = mine[t];
      reinterpret_cast<float4*>(norm.h)[place] = v;
    }
    if (norm.rounded.words != nullptr) {
      StoreRounded(v, is_there, norm.rounded, t, args.in, is_there ? at * 4 : 0);
    }
  }
}
// Its weights, which no kernel writes.
__device__ float4 NormWeight(const Args& args) {
  const int at = static_cast<int>(threadIdx.x);
  return at < args.in / 4 ? reinterpret_cast<const float4*>(args.norm.weight)[at]
                          : float4{0, 0, 0, 0};
}

// Adds up what the `split` warps of each unit left in `partial`, in the order of the warps.
__device__ void WriteSums(const Args& args, const Job& job, int64_t group, int width,
                          const Partial& partial) {
  const int per_block = kWarps / job.split;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < per_block * kMmaRows * kWidth; i += kThreads) {
    const int unit = i / (kMmaRows * kWidth), t = i / kWidth % kMmaRows, r = i % kWidth;
    const int64_t row = (group * per_block + unit) * width + r;
    if (t >= args.n_rows || r >= width || row >= job.out) continue;
    float sum = 0;
#pragma unroll 4
    for (int w = 0; w < job.split; ++w) sum += partial[unit * job.split + w][t][r];
    job.y[t * job.out + row] = sum * job.factor;
  }
}

// The warps of a strip take its tiles in turn. What a warp asks for runs ahead of what it takes,
// also across groups.
template <int kBits, int kRows, bool kIsNormed>
__device__ void TiledJob(const Args& args, const Job& job, uint8_t* shared, Partial& partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int n_tiles = args.in / kColumnsATile, split = job.split, per_block = kWarps / split;
  const int first_tile = warp % split;
  const int n_groups = static_cast<int>(job.n_groups()), n_units = static_cast<int>(job.n_units);
  constexpr int kDepth = kRingBytes / TilePipe<kBits, 1>::kBytes;
  TilePipe<kBits, kDepth> pipe(shared + warp * kRingBytes, lane);
  int asked_group = static_cast<int>(blockIdx.x) - job.first_block, asked_tile = first_tile;
  const auto ask = [&] {
    const int strip = asked_group * per_block + warp / split;
    const int64_t at = int64_t{strip} * n_tiles + asked_tile;
    const bool is_there = strip < n_units && asked_tile < n_tiles;
    pipe.Ask(is_there ? job.data + at * MmaTile<kBits>::kBytes : nullptr,
             job.scales + at * kRowsATile);
    asked_tile += split;
    if (asked_tile >= n_tiles) asked_tile = first_tile, asked_group += job.n_blocks;
  };

  // Stage 1: the first weights are under way while earlier kernels end and x is rounded.
#pragma unroll 1
  for (int d = 0; d < kDepth; ++d) ask();
  float4 norm_weight;
  if constexpr (kIsNormed) norm_weight = NormWeight(args);
  JoinChain();
  const StagedRows x = StagedIn(shared + kWarps * kRingBytes, args.n_rows, args.in);
  if constexpr (kIsNormed) {
    NormRows<kRows>(args, norm_weight, [&](int t, const float4& v, bool is_there) {
      const int place = (is_there ? static_cast<int>(threadIdx.x) / 16 : 0) * kRows + t;
      StageVector<kBits>(v, is_there, 1.f, x.words + place * 16, x.scales + place);
    });
  } else if (kBits == 4 && args.rounded.words != nullptr) {
    StageCopies(
        args.n_rows, args.in, args.rounded, [](int row) { return row; }, x);
  } else {
    StageRounded<kBits>(
        args.n_rows, args.in,
        [&](int row, int column) {
          return *reinterpret_cast<const float4*>(args.x + int64_t{row} * args.in + column);
        },
        [](int) { return 1.f; }, x);
  }
  const MmaLane mine(lane, args.n_rows);
  const DecodeLevels levels = job.levels;
  __syncthreads();  // orders x before its readers

#pragma unroll 1
  for (int group = static_cast<int>(blockIdx.x) - job.first_block; group < n_groups;
       group += job.n_blocks) {
    // Stage 2: the warp's tiles. Strips past the last have sums that nobody reads.
    MmaSums sums;
#pragma unroll 1
    for (int tile = first_tile; tile < n_tiles; tile += split) {
      const MmaTile<kBits> weights = pipe.Take();
      ask();
      AddMmaTile<kRows == 1>(weights, levels, x, tile, args.n_rows, mine, sums);
    }
    // Stage 3: sums over warps.
    StoreSums(sums, lane, args.n_rows, partial[warp]);
    __syncthreads();  // orders `partial` before its readers
    WriteSums(args, job, group, kRowsATile, partial);
    if (group + job.n_blocks < n_groups) __syncthreads();  // its readers before the next sums
  }
}

__device__ inline float2 Bf16Pair(uint32_t bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// Sums of n values over the warp, by halves: lane l has that of values[l / (32 / n)]. The order is
// the same for any n.
template <int n>
__device__ float SumsOverLanes(float (&values)[n]) {
  int lanes = kWarp / 2;
#pragma unroll
  for (int half = n / 2; half > 0; half /= 2, lanes /= 2) {
    const bool is_upper = (threadIdx.x & static_cast<unsigned>(lanes)) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = is_upper ? values[i] : values[i + half];
      const float keep = is_upper ? values[i + half] : values[i];
      values[i] = keep + __shfl_xor_sync(0xffffffffu, give, lanes);
    }
  }
#pragma unroll
  for (int offset = kWarp / 2 / n; offset > 0; offset /= 2) {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], offset);
  }
  return values[0];
}

// The warps of two outputs take their columns in turns of 256, a lane eight neighbours of each
// output; kRows rows of x at a time.
template <int kRows, bool kIsNormed>
__device__ void Bf16Job(const Args& args, const Job& job, float* normed, Partial& partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int per_block = kWarps / job.split, in = args.in;
  const int begin = warp % job.split * kTurn + lane * 8;
  const int64_t n_groups = job.n_groups();
  const auto* data = reinterpret_cast<const uint16_t*>(job.data);
  uint4 raw[kBf16Outputs];
  const auto load = [&](int64_t group, int column) {
    const int64_t first = (group * per_block + warp / job.split) * kBf16Outputs;
#pragma unroll
    for (int o = 0; o < kBf16Outputs; ++o) {
      raw[o] = first + o < job.out && column < in ? LoadOnce(data + (first + o) * in + column)
                                                  : make_uint4(0, 0, 0, 0);
    }
  };

  // Stage 1: the first weights are under way while earlier kernels end.
  int64_t group = static_cast<int>(blockIdx.x) - job.first_block;
  load(group, begin);
  float4 norm_weight;
  if constexpr (kIsNormed) norm_weight = NormWeight(args);
  JoinChain();
  const float* const rows = kIsNormed ? normed : args.x;
  if constexpr (kIsNormed) {
    NormRows<kRows>(args, norm_weight, [&](int t, const float4& v, bool is_there) {
      if (is_there) reinterpret_cast<float4*>(normed)[t * in / 4 + threadIdx.x] = v;
    });
    __syncthreads();  // orders `normed` before its readers
  }

  bool is_loaded = true;
#pragma unroll 1
  for (; group < n_groups; group += job.n_blocks) {
    // Stage 2: the lane's columns.
#pragma unroll 1
    for (int first_row = 0; first_row < args.n_rows; first_row += kRows) {
      float acc[kRows * kBf16Outputs] = {};
#pragma unroll 1
      for (int column = begin; column - lane * 8 < in; column += job.split * kTurn) {
        if (!is_loaded) load(group, column);
        // One turn a warp: its weights serve all rows.
        is_loaded = job.split * kTurn >= in && first_row + kRows < args.n_rows;
        if (column >= in) continue;
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
          if (first_row + t >= args.n_rows) break;
          const auto* x =
              reinterpret_cast<const float4*>(rows + int64_t{first_row + t} * in + column);
          const float4 a = x[0], b = x[1];
#pragma unroll
          for (int o = 0; o < kBf16Outputs; ++o) {
            const float2 w[4] = {Bf16Pair(raw[o].x), Bf16Pair(raw[o].y), Bf16Pair(raw[o].z),
                                 Bf16Pair(raw[o].w)};
            float& sum = acc[t * kBf16Outputs + o];
            sum = fmaf(w[0].x, a.x, sum);
            sum = fmaf(w[0].y, a.y, sum);
            sum = fmaf(w[1].x, a.z, sum);
            sum = fmaf(w[1].y, a.w, sum);
            sum = fmaf(w[2].x, b.x, sum);
            sum = fmaf(w[2].y, b.y, sum);
            sum = fmaf(w[3].x, b.z, sum);
            sum = fmaf(w[3].y, b.w, sum);
          }
        }
      }
      // Stage 3: sums over lanes, then over warps.
      constexpr int kShare = kWarp / (kRows * kBf16Outputs);  // lanes with the same sum
      const float sum = SumsOverLanes(acc);
      const int t = lane / kShare / kBf16Outputs, o = lane / kShare % kBf16Outputs;
      if (lane % kShare == 0 && first_row + t < args.n_rows) partial[warp][first_row + t][o] = sum;
    }
    __syncthreads();  // orders `partial` before its readers
    WriteSums(args, job, group, kBf16Outputs, partial);
    __syncthreads();  // its readers before the next sums
    is_loaded = false;
  }
}

// One block belongs to one matrix. kRows rows at a time where it is of bf16.
template <int kRows, bool kIsNormed>
__global__ void __launch_bounds__(kThreads, 2) DecodeLinears(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ Partial partial;
  int j = 0;
  while (j + 1 < args.n_jobs && static_cast<int>(blockIdx.x) >= args.jobs[j + 1].first_block) ++j;
  const Job& job = args.jobs[j];
  if (job.kind == DecodeKind::kTiled4) {
    TiledJob<4, kRows, kIsNormed>(args, job, shared, partial);
  } else if (job.kind == DecodeKind::kTiled8) {
    TiledJob<8, kRows, kIsNormed>(args, job, shared, partial);
  } else {
    Bf16Job<kRows, kIsNormed>(args, job, reinterpret_cast<float*>(shared), partial);
  }
}

cudaError_t LaunchLinears(const Args& args, const LaunchShape& shape) {
  if (args.norm.x != nullptr) {
    return args.n_rows == 1 ? Launch(DecodeLinears<1, true>, shape, args)
                            : Launch(DecodeLinears<2, true>, shape, args);
  }
  if (args.n_rows == 1) return Launch(DecodeLinears<1, false>, shape, args);
  if (args.n_rows == 2) return Launch(DecodeLinears<2, false>, shape, args);
  return Launch(DecodeLinears<4, false>, shape, args);
}

// Launches `args`, which have no jobs yet.
cudaError_t LaunchAll(const DecodeLinear* linears, int n_linears, Args args, cudaStream_t stream) {
  int device = 0, n_processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;

  args.n_jobs = n_linears;
  args.in = static_cast<int>(linears[0].weights.in);
  bool any_tiles = false;
  for (int j = 0; j < n_linears; ++j) {
    args.jobs[j] = JobOf(linears[j], n_processors);
    any_tiles |= linears[j].kind != DecodeKind::kBf16;
  }
  const int n_blocks = DivideIntoBlocks(TurnsFor(args, n_processors), &args);
  const int64_t tiled = any_tiles ? kWarps * kRingBytes + StagedBytes(args.n_rows, args.in) : 0;
  const int64_t floats = args.norm.x != nullptr ? int64_t{4} * args.n_rows * args.in : 0;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(n_blocks)),
                             .threads = kThreads,
                             .shared_bytes = static_cast<size_t>(std::max(tiled, floats)),
                             .stream = stream};
  return LaunchLinears(args, shape);
}

}  // namespace

cudaError_t DecodeLinearsCuda(const DecodeLinear* linears, int n_linears, int n_rows,
                              const float* x, const RoundedRows& rounded, cudaStream_t stream) {
  if (!IsValid(linears, n_linears, n_rows)) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  Args args = {};
  args.n_rows = n_rows;
  args.x = x;
  args.rounded = rounded;
  return LaunchAll(linears, n_linears, args, stream);
}

cudaError_t NormedDecodeLinearsCuda(const DecodeLinear* linears, int n_linears, int n_rows,
                                    const NormBefore& norm, cudaStream_t stream) {
  if (!IsValid(linears, n_linears, n_rows) || n_rows > kMaxNormedRows ||
      linears[0].weights.in % 64 != 0 || linears[0].weights.in > kMaxNormedWidth ||
      (norm.delta != nullptr && norm.sum == norm.x)) {
    return cudaErrorInvalidValue;
  }
  if (n_rows == 0) return cudaSuccess;
  Args args = {};
  args.n_rows = n_rows;
  args.norm = norm;
  return LaunchAll(linears, n_linears, args, stream);
}

}  // namespace hearth::worker
