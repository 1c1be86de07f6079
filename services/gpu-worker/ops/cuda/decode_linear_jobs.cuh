// How the matrices of a launch of decode_linear.cu are divided among blocks. Only for that file.
#pragma once

#include <algorithm>

#include "services/gpu-worker/ops/cuda/decode_linear.h"
#include "services/gpu-worker/ops/cuda/mma_tile.cuh"

namespace hearth::worker::decode_linear {

inline constexpr int kWarps = 16, kThreads = kWarps * kWarp;
static_assert(kMmaRows == kMaxDecodeRows);
inline constexpr int kBf16Outputs = 2;     // of a warp at a time
inline constexpr int kTurn = kWarp * 8;    // columns of bf16 that a warp takes at a time
inline constexpr int kWidth = kRowsATile;  // room for a unit's outputs
// Of tiles under way a warp: six of 4 bits. With them and a row or eight of 2048 to 4096 columns,
// two kernels' blocks fit on an H100's processor, so that the second's weights come while the first
// ends.
inline constexpr int kRingBytes = TilePipe<4, 6>::kBytes;

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
  NormBefore norm;      // where x and rounded are yet to be made
};

inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Warps a unit: the fewest turns of the processors, where each group costs half a load beside its
// loads.
inline int SplitFor(int64_t n_units, int64_t loads_a_unit, int n_processors) {
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
inline int DivideIntoBlocks(int turns, Args* args) {
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
inline int64_t BusiestLoads(const Args& args, int turns, int n_processors) {
  constexpr int kMost = 512;
  const int start = args.rounded.words != nullptr || args.norm.x != nullptr ? 5 : 4 + args.n_rows;
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
inline int TurnsFor(Args args, int n_processors) {
  int best = 1;
  int64_t least = 0;
  for (int turns = 1; turns <= 9; ++turns) {
    DivideIntoBlocks(turns, &args);
    const int64_t loads = BusiestLoads(args, turns, n_processors);
    if (turns == 1 || loads < least) best = turns, least = loads;
  }
  return best;
}

inline bool IsValid(const DecodeLinear* linears, int n_linears, int n_rows) {
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

inline Job JobOf(const DecodeLinear& linear, int n_processors) {
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

}  // namespace hearth::worker::decode_linear
