#include <algorithm>

#include "services/gpu-worker/ops/cuda/prefill_experts.h"
#include "services/gpu-worker/ops/cuda/prefill_product.cuh"

namespace hearth::worker {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kResidentBlocks = 2;
constexpr int kMostRows = 64;  // of one expert that a block multiplies at a time
constexpr int kMaxTopK = 64, kMaxListed = 4096;
constexpr int kActColumns = kWarps * kStripRows;  // of act, a unit: a gate and an up strip a warp
// Of products, a unit: two rounds of two strips a warp.
constexpr int kRoundColumns = 2 * kWarps * kStripRows, kOutRounds = 2;
constexpr int kOutColumns = kOutRounds * kRoundColumns;

// Fewer rows need smaller stages, of which more fit.
template <int kRows>
using Product = ProductShape<WeightKind::kTiled4, kWarps, 2, kRows, 7 - kRows / 16>;
constexpr int kSharedBytes =
    std::max({Product<16>::kSharedBytes, Product<32>::kSharedBytes, Product<48>::kSharedBytes,
              Product<kMostRows>::kSharedBytes});

struct ExpertsArgs {
  ExpertsShape shape;
  const PrefillExpert* experts;
  int n_listed;
  PrefillPlaces places;
};

// Part of one expert's work: at most kMostRows of its rows times one group of its outputs.
struct Unit {
  const uint8_t* slot = nullptr;
  int first = 0;  // of the rows, in the groups' order
  int n_rows = 0;
  int group = 0;
};

// Sums before each thread's value over the block; `total` gets the whole. `sums` [kWarps + 1].
__device__ int ScanBlock(int value, int* sums, int* total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  int sum = value;
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const int below = __shfl_up_sync(kAllLanes, sum, d);
    if (lane >= d) sum += below;
  }
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();  // every warp's sum is there
  int before = 0;
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += sums[w];
    *total += sums[w];
  }
  return before + sum - value;
}

__device__ int RowsOf(const ExpertsArgs& args, int entry) {
  const PrefillExpert& expert = args.experts[entry];
  if (expert.slot == nullptr) return 0;
  const int32_t* offsets = args.places.groups.offsets + expert.expert;
  return offsets[1] - offsets[0];
}

// first_unit[i] = units of the entries before i; returns how many there are. All threads; a barrier
// must follow.
__device__ int Schedule(const ExpertsArgs& args, int n_groups, int* first_unit) {
  __shared__ int sums[kWarps];
  const int share = (args.n_listed + kThreads - 1) / kThreads;
  const int begin = static_cast<int>(threadIdx.x) * share, end = min(begin + share, args.n_listed);
  const auto units = [&](int entry) {
    return (RowsOf(args, entry) + kMostRows - 1) / kMostRows * n_groups;
  };
  int mine = 0, total = 0;
  for (int i = begin; i < end; ++i) mine += units(i);
  int before = ScanBlock(mine, sums, &total);
  for (int i = begin; i < end; ++i) {
    first_unit[i] = before;
    before += units(i);
  }
  return total;
}

__device__ Unit FindUnit(const ExpertsArgs& args, int n_groups, const int* first_unit, int number) {
  int low = 0, high = args.n_listed;  // the last entry that begins at or before `number`
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first_unit[middle] <= number ? low : high) = middle;
  }
  const PrefillExpert expert = args.experts[low];
  const int32_t* offsets = args.places.groups.offsets + expert.expert;
  const int within = number - first_unit[low];
  const int first = offsets[0] + within / n_groups * kMostRows;
  return {.slot = expert.slot,
          .first = first,
          .n_rows = min(kMostRows, offsets[1] - first),
          .group = within % n_groups};
}

__device__ Strip StripOf(const uint8_t* slot, const SlotMatrix& matrix, int strip, int n_strips,
                         int n_tiles) {
  if (strip >= n_strips) return {};
  const int64_t tile = int64_t{strip} * n_tiles;
  return {.data = slot + matrix.data + tile * kStripRows * kTileWidth / 2,
          .scales = reinterpret_cast<const uint16_t*>(slot + matrix.scales) + tile * kStripRows};
}
__device__ inline float FactorOf(const uint8_t* slot, const SlotMatrix& matrix) {
  return *reinterpret_cast<const float*>(slot + matrix.factor);
}

// act = silu(gate h) * up h for a unit: a warp has a strip of gate and the same one of up.
template <int kRows>
__device__ void GateUpUnit(const ExpertsArgs& args, const Unit& unit, const uint8_t* table,
                           uint8_t* stages) {
  using Shape = Product<kRows>;
  const ExpertsShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int n_tiles = shape.width / kTileWidth, n_strips = shape.inner / kStripRows;
  const int strip = unit.group * kWarps + warp;
  const Strip strips[2] = {StripOf(unit.slot, shape.gate, strip, n_strips, n_tiles),
                           StripOf(unit.slot, shape.up, strip, n_strips, n_tiles)};
  RowPlaces<Shape> rows{.columns = shape.width};
#pragma unroll
  for (int i = 0; i < Shape::kPieces; ++i) {
    const int row = static_cast<int>(threadIdx.x + i * kThreads) / 8;
    if (row >= unit.n_rows) break;
    const int place = args.places.groups.order[unit.first + row];
    rows.rows[i] = args.places.h + int64_t{place / shape.top_k} * shape.width;
  }
  const float gate_factor = FactorOf(unit.slot, shape.gate);
  const float up_factor = FactorOf(unit.slot, shape.up);
  // Through shared memory, so that act's rows are written in whole sectors.
  constexpr int kPitch = kActColumns + 8;
  static_assert(kRows * kPitch * 2 <= Shape::kStages * Shape::kStageBytes);
  auto* halves = reinterpret_cast<__half*>(stages);
  const auto write = [&](int, const ProductSums<Shape>& sums) {
    __syncthreads();  // the stages have been read
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int row = j * 8 + lane % 4 * 2 + c % 2;
        const int column = warp * kStripRows + lane / 4 * 2 + c / 2;
        const float value = SiluOf(sums[0][j][c] * gate_factor) * (sums[1][j][c] * up_factor);
        halves[row * kPitch + column / kTileWidth * kTileWidth + PlaceInTile(column % kTileWidth)] =
            ToHalf(value);
      }
    }
  };
  MultiplyStrips<Shape>(strips, rows, OneRound{n_tiles}, stages, table, write);
  __syncthreads();  // every column is there
  for (int i = static_cast<int>(threadIdx.x); i < unit.n_rows * kActColumns / 8; i += kThreads) {
    const int row = i / (kActColumns / 8), column = i % (kActColumns / 8) * 8;
    if (unit.group * kActColumns + column >= shape.inner) continue;
    uint16_t* to = args.places.act + int64_t{unit.first + row} * shape.inner +
                   unit.group * kActColumns + column;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(halves + row * kPitch + column);
  }
}

// Where a unit's products go and what they are multiplied by.
struct OutPlaces {
  int place[kMostRows];
  float factor[kMostRows];
};

// products = weight * down(act) for a unit: a warp has two neighbouring strips in each round.
template <int kRows>
__device__ void DownUnit(const ExpertsArgs& args, const Unit& unit, const uint8_t* table,
                         uint8_t* stages, OutPlaces& out) {
  using Shape = Product<kRows>;
  const ExpertsShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int n_tiles = shape.inner / kTileWidth, n_strips = shape.width / kStripRows;
  constexpr int kRoundStrips = kRoundColumns / kStripRows;
  const int strip = unit.group * kOutRounds * kRoundStrips + warp * 2;
  Strip strips[2] = {StripOf(unit.slot, shape.down, strip, n_strips, n_tiles),
                     StripOf(unit.slot, shape.down, strip + 1, n_strips, n_tiles)};
  const auto rounds_of = [&](int first) {
    return (n_strips - first + kRoundStrips - 1) / kRoundStrips;
  };
  strips[0].rounds = rounds_of(strip), strips[1].rounds = rounds_of(strip + 1);
  const int n_rounds = min(kOutRounds, rounds_of(unit.group * kOutRounds * kRoundStrips));
  RowPlaces<Shape> rows{.columns = shape.inner};
#pragma unroll
  for (int i = 0; i < Shape::kPieces; ++i) {
    const int row = static_cast<int>(threadIdx.x + i * kThreads) / 8;
    if (row >= unit.n_rows) break;
    rows.rows[i] = args.places.act + int64_t{unit.first + row} * shape.inner;
  }
  // The product's barriers order these before `write`.
  const int mine = static_cast<int>(threadIdx.x) - (kThreads - kMostRows);
  if (mine >= 0 && mine < unit.n_rows) {
    const int place = args.places.groups.order[unit.first + mine];
    out.place[mine] = place;
    out.factor[mine] = FactorOf(unit.slot, shape.down) * args.places.weights[place];
  }

  const auto write = [&](int round, const ProductSums<Shape>& sums) {
    const int first = strip + round * kRoundStrips;
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int row = j * 8 + lane % 4 * 2 + c;
        if (row >= unit.n_rows) continue;
        const float by = out.factor[row];
        uint16_t* to = args.places.products + int64_t{out.place[row]} * shape.width +
                       first * kStripRows + lane / 4 * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (first + i >= n_strips) continue;
          *reinterpret_cast<uint32_t*>(to + i * kStripRows) =
              PackHalves(ToHalf(sums[i][j][c] * by), ToHalf(sums[i][j][2 + c] * by));
        }
      }
    }
  };
  MultiplyStrips<Shape>(strips, rows, Rounds{n_tiles, n_rounds, (kRoundStrips - 1) * n_tiles},
                        stages, table, write);
}

// As many blocks as fit at once; each takes every gridDim.x-th unit. The device alone knows how
// many units there are.
template <bool kIsDown>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    ExpertsKernel(const __grid_constant__ ExpertsArgs args) {
  extern __shared__ uint4 shared[];
  auto* table = reinterpret_cast<uint8_t*>(shared);
  uint8_t* stages = table + kPairTableBytes;
  auto* first_unit = reinterpret_cast<int*>(table + kSharedBytes);
  __shared__ OutPlaces out;
  constexpr int kColumns = kIsDown ? kOutColumns : kActColumns;
  const int n_columns = kIsDown ? args.shape.width : args.shape.inner;
  const int n_groups = (n_columns + kColumns - 1) / kColumns;
  FillPairTable(args.shape.levels, reinterpret_cast<uint32_t*>(table));
  const int n_units = Schedule(args, n_groups, first_unit);
  for (int number = static_cast<int>(blockIdx.x); number < n_units;
       number += static_cast<int>(gridDim.x)) {
    __syncthreads();  // table and schedule are there, and the last unit's stages have been read
    const Unit unit = FindUnit(args, n_groups, first_unit, number);
    const auto run = [&]<int kRows>() {
      if constexpr (kIsDown) {
        DownUnit<kRows>(args, unit, table, stages, out);
      } else {
        GateUpUnit<kRows>(args, unit, table, stages);
      }
    };
    if (unit.n_rows <= 16) {
      run.template operator()<16>();
    } else if (unit.n_rows <= 32) {
      run.template operator()<32>();
    } else if (unit.n_rows <= 48) {
      run.template operator()<48>();
    } else {
      run.template operator()<64>();
    }
  }
}

template <bool kIsDown>
cudaError_t Launch(const ExpertsArgs& args, int n_processors, cudaStream_t stream) {
  const auto* kernel = reinterpret_cast<const void*>(ExpertsKernel<kIsDown>);
  const int bytes = kSharedBytes + args.n_listed * 4;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  int resident = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads,
                                                        static_cast<size_t>(bytes));
  if (error != cudaSuccess) return error;
  if (resident < 1) return cudaErrorInvalidValue;
  const auto n_blocks = static_cast<unsigned>(resident * n_processors);
  ExpertsKernel<kIsDown><<<n_blocks, kThreads, static_cast<size_t>(bytes), stream>>>(args);
  return cudaGetLastError();
}

bool IsValid(const ExpertsShape& shape, int n_listed) {
  return shape.n_rows >= 0 && shape.top_k >= 1 && shape.top_k <= kMaxTopK && shape.width > 0 &&
         shape.width % kTileWidth == 0 && shape.inner > 0 && shape.inner % kTileWidth == 0 &&
         n_listed >= 0 && n_listed <= kMaxListed && shape.n_rows <= INT32_MAX / kMaxTopK;
}

}  // namespace

cudaError_t PrefillExpertsCuda(const ExpertsShape& shape, const PrefillExpert* experts,
                               int n_listed, const PrefillPlaces& places, cudaStream_t stream) {
  if (!IsValid(shape, n_listed)) return cudaErrorInvalidValue;
  if (shape.n_rows == 0 || n_listed == 0) return cudaSuccess;
  int device = 0, n_processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const ExpertsArgs args{shape, experts, n_listed, places};
  error = Launch<false>(args, n_processors, stream);
  if (error != cudaSuccess) return error;
  return Launch<true>(args, n_processors, stream);
}

}  // namespace hearth::worker
