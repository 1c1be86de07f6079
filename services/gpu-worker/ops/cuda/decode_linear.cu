#include <algorithm>

#include "services/gpu-worker/ops/cuda/decode_linear.h"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/mma_tile.cuh"

namespace hearth::worker {
namespace {

constexpr int kWarps = 16, kThreads = kWarps * kWarp;
static_assert(kMmaRows == kMaxDecodeRows);
constexpr int kBf16Outputs = 2;     // of a warp at a time
constexpr int kTurn = kWarp * 8;    // columns of bf16 that a warp takes at a time
constexpr int kWidth = kRowsATile;  // room for a unit's outputs
// Of tiles under way a warp: six of 4 bits. With them and a row or eight of 2048 to 4096 columns,
// two kernels' blocks fit on an H100's processor, so that the second's weights come while the first
// ends.
constexpr int kRingBytes = TilePipe<4, 6>::kBytes;

// A unit is a strip of 16 outputs, or two bf16 ones. `split` warps share a unit; a group is the
// kWarps / split units that a block takes at a time.
struct Job {
  DecodeKind kind;
  int split;  // a power of two, at most kWarps
  int64_t out;
  int64_t n_units;
  int first_block;
  int n_blocks;  // block b takes the groups b, b + n_blocks, ...
  const uint8_t* data;
  const uint16_t* scales;
  DecodeLevels levels;
  float factor;
  float* y;
  __host__ __device__ int64_t n_groups() const {
    const int per_block = kWarps / split;
    return (n_units + per_block - 1) / per_block;
  }
};

struct Args {
  Job jobs[kMaxDecodeLinears];
  int n_jobs;
  int n_rows;
  int in;
  const float* x;
  RoundedRows rounded;  // of 4-bit ones, if there
};

using Partial = float[kWarps][kMmaRows][kWidth];

// Adds up what the `split` warps of each unit left in `partial`, in the order of the warps.
__device__ void WriteSums(const Args& args, const Job& job, int64_t group, int width,
                          const Partial& partial) {
  const int per_block = kWarps / job.split;
  for (int i = static_cast<int>(threadIdx.x); i < per_block * kMmaRows * kWidth; i += kThreads) {
    const int unit = i / (kMmaRows * kWidth), t = i / kWidth % kMmaRows, r = i % kWidth;
    const int64_t row = (group * per_block + unit) * width + r;
    if (t >= args.n_rows || r >= width || row >= job.out) continue;
    float sum = 0;
    for (int w = 0; w < job.split; ++w) sum += partial[unit * job.split + w][t][r];
    job.y[t * job.out + row] = sum * job.factor;
  }
}

// The warps of a strip take its tiles in turn. What a warp asks for runs ahead of what it takes,
// also across groups.
template <int kBits, bool kIsOne>
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
  for (int d = 0; d < kDepth; ++d) ask();
  JoinChain();
  const StagedRows x = StagedIn(shared + kWarps * kRingBytes, args.n_rows, args.in);
  if (kBits == 4 && args.rounded.words != nullptr) {
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

  for (int group = static_cast<int>(blockIdx.x) - job.first_block; group < n_groups;
       group += job.n_blocks) {
    // Stage 2: the warp's tiles. Strips past the last have sums that nobody reads.
    MmaSums sums;
    for (int tile = first_tile; tile < n_tiles; tile += split) {
      const MmaTile<kBits> weights = pipe.Take();
      ask();
      AddMmaTile<kIsOne>(weights, levels, x, tile, args.n_rows, mine, sums);
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
template <int kRows>
__device__ void Bf16Job(const Args& args, const Job& job, Partial& partial) {
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
  JoinChain();

  bool is_loaded = true;
  for (; group < n_groups; group += job.n_blocks) {
    // Stage 2: the lane's columns.
    for (int first_row = 0; first_row < args.n_rows; first_row += kRows) {
      float acc[kRows * kBf16Outputs] = {};
      for (int column = begin; column - lane * 8 < in; column += job.split * kTurn) {
        if (!is_loaded) load(group, column);
        // One turn a warp: its weights serve all rows.
        is_loaded = job.split * kTurn >= in && first_row + kRows < args.n_rows;
        if (column >= in) continue;
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
          if (first_row + t >= args.n_rows) break;
          const auto* x =
              reinterpret_cast<const float4*>(args.x + int64_t{first_row + t} * in + column);
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
template <int kRows>
__global__ void __launch_bounds__(kThreads, 2) DecodeLinears(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ Partial partial;
  int j = 0;
  while (j + 1 < args.n_jobs && static_cast<int>(blockIdx.x) >= args.jobs[j + 1].first_block) ++j;
  const Job& job = args.jobs[j];
  if (job.kind == DecodeKind::kTiled4) {
    TiledJob<4, kRows == 1>(args, job, shared, partial);
  } else if (job.kind == DecodeKind::kTiled8) {
    TiledJob<8, kRows == 1>(args, job, shared, partial);
  } else {
    Bf16Job<kRows>(args, job, partial);
  }
}

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Warps a unit: the fewest turns of the processors, where each group costs half a load beside its
// loads.
int SplitFor(int64_t n_units, int64_t loads_a_unit, int n_processors) {
  int best = 1;
  double least = 0;
  for (int split = 1; split <= kWarps; split *= 2) {
    if (split > 1 && split / 2 >= loads_a_unit) break;  // warps without any
    const int64_t turns = DivideUp(DivideUp(n_units, kWarps / split), n_processors);
    const double cost =
        static_cast<double>(turns) * (static_cast<double>(DivideUp(loads_a_unit, split)) + 0.5);
    if (split == 1 || cost <= least) best = split, least = cost;
  }
  return best;
}

// Divides the jobs' groups among blocks of `turns` each. Returns how many blocks there are.
int DivideIntoBlocks(int turns, Args* args) {
  int n_blocks = 0;
  for (int j = 0; j < args->n_jobs; ++j) {
    Job& job = args->jobs[j];
    job.first_block = n_blocks;
    job.n_blocks = static_cast<int>(DivideUp(job.n_groups(), turns));
    n_blocks += job.n_blocks;
  }
  return n_blocks;
}

// How long the busiest processor works, in loads of a warp. Measured on an H100: two blocks on a
// processor are no faster than one after the other, but for their start; a group costs a load more
// than it has, and a start about five (of 2048 columns), more if many rows are rounded.
int64_t BusiestLoads(const Args& args, int turns, int n_processors) {
  constexpr int kMost = 512;
  const int start = args.rounded.words != nullptr ? 5 : 4 + args.n_rows;
  int64_t loads[kMost] = {};
  int blocks[kMost] = {};
  int at = 0;
  for (int j = 0; j < args.n_jobs; ++j) {
    const Job& job = args.jobs[j];
    const int columns = job.kind == DecodeKind::kBf16 ? kTurn : kColumnsATile;
    const int64_t a_group = DivideUp(DivideUp(args.in, columns), job.split) + 1;
    for (int b = 0; b < job.n_blocks; ++b, at = (at + 1) % std::min(n_processors, kMost)) {
      loads[at] += turns * a_group;
      ++blocks[at];
    }
  }
  int64_t most = 0;
  for (int p = 0; p < kMost; ++p) {
    most = std::max(most, loads[p] + int64_t{start} * ((blocks[p] + 1) / 2));
  }
  return most;
}

// Groups that a block takes in turn.
int TurnsFor(Args args, int n_processors) {
  int best = 1;
  int64_t least = 0;
  for (int turns = 1; turns <= 9; ++turns) {
    DivideIntoBlocks(turns, &args);
    const int64_t loads = BusiestLoads(args, turns, n_processors);
    if (turns == 1 || loads < least) best = turns, least = loads;
  }
  return best;
}

bool IsValid(const DecodeLinear* linears, int n_linears, int n_rows) {
  if (n_linears < 1 || n_linears > kMaxDecodeLinears || n_rows < 0 || n_rows > kMaxDecodeRows) {
    return false;
  }
  for (int j = 0; j < n_linears; ++j) {
    const DeviceMatrix& matrix = linears[j].weights;
    const int unit = linears[j].kind == DecodeKind::kBf16 ? 8 : kColumnsATile;
    if (matrix.in != linears[0].weights.in || matrix.in <= 0 || matrix.in % unit != 0 ||
        matrix.in > 16384 || matrix.out < 1 || matrix.out > int64_t{1} << 30) {
      return false;
    }
  }
  return true;
}

Job JobOf(const DecodeLinear& linear, int n_processors) {
  const DeviceMatrix& matrix = linear.weights;
  const bool is_bf16 = linear.kind == DecodeKind::kBf16;
  const int64_t n_units = DivideUp(matrix.out, is_bf16 ? kBf16Outputs : kRowsATile);
  const int64_t loads = DivideUp(matrix.in, is_bf16 ? kTurn : kColumnsATile);
  return {.kind = linear.kind,
          .split = SplitFor(n_units, loads, n_processors),
          .out = matrix.out,
          .n_units = n_units,
          .first_block = 0,
          .n_blocks = 0,
          .data = static_cast<const uint8_t*>(matrix.data),
          .scales = matrix.scales,
          .levels = linear.levels,
          .factor = is_bf16                              ? 1.f
                    : linear.kind == DecodeKind::kTiled4 ? matrix.factor / linear.levels.scale
                                                         : matrix.factor,
          .y = linear.y};
}

}  // namespace

cudaError_t DecodeLinearsCuda(const DecodeLinear* linears, int n_linears, int n_rows,
                              const float* x, const RoundedRows& rounded, cudaStream_t stream) {
  if (!IsValid(linears, n_linears, n_rows)) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  int device = 0, n_processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;

  Args args = {.jobs = {},
               .n_jobs = n_linears,
               .n_rows = n_rows,
               .in = static_cast<int>(linears[0].weights.in),
               .x = x,
               .rounded = rounded};
  bool any_tiles = false;
  for (int j = 0; j < n_linears; ++j) {
    args.jobs[j] = JobOf(linears[j], n_processors);
    any_tiles |= linears[j].kind != DecodeKind::kBf16;
  }
  const int n_blocks = DivideIntoBlocks(TurnsFor(args, n_processors), &args);
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(n_blocks)),
      .threads = kThreads,
      .shared_bytes =
          any_tiles ? static_cast<size_t>(kWarps * kRingBytes + StagedBytes(n_rows, args.in)) : 0,
      .stream = stream};
  if (n_rows == 1) return Launch(DecodeLinears<1>, shape, args);
  if (n_rows == 2) return Launch(DecodeLinears<2>, shape, args);
  return Launch(DecodeLinears<4>, shape, args);
}

}  // namespace hearth::worker
