#include "services/gpu-worker/ops/cuda/decode_experts.h"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/mma_tile.cuh"

namespace hearth::worker {
namespace {

constexpr int kMaxTopK = 64;

struct Args {
  ExpertsShape shape;
  DecodeLevels levels;
  const ExpertPlace* places;
  const float* h;
  RoundedRows rounded;  // h, if there
  float* act;
  float* out;
};

// Past the L1: it may have been written while this kernel's blocks were already on their way.
__device__ inline const uint8_t* SlotOf(const ExpertPlace& place) {
  return reinterpret_cast<const uint8_t*>(
      __ldcg(reinterpret_cast<const unsigned long long*>(&place.slot)));
}
// Asked for here, whenever it is used.
__device__ inline float LoadFactor(const uint8_t* slot, const SlotMatrix& matrix) {
  float value;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(slot + matrix.factor));
  return value;
}
__device__ inline float FactorOf(const uint8_t* slot, const SlotMatrix& matrix, float scale) {
  return *reinterpret_cast<const float*>(slot + matrix.factor) / scale;
}

constexpr int kGateWarps = 8, kGateSplit = kGateWarps / 2;  // half of them take gate, half up
constexpr int kGateThreads = kGateWarps * kWarp;
constexpr int kGateDepth = 4;  // tiles under way a warp
constexpr int kMaxPlaces = kMmaRows * kMaxTopK;

// Which places of all have one expert: a bit each.
struct SameExpert {
  unsigned bits[kMaxPlaces / kWarp];
};

// The block together; a barrier must follow.
__device__ void FindSame(const Args& args, const uint8_t* slot, SameExpert* same) {
  const int n_places = args.shape.n_rows * args.shape.top_k;
  for (int first = 0; first < n_places; first += kGateThreads) {
    const int place = first + static_cast<int>(threadIdx.x);
    const unsigned bits =
        __ballot_sync(kAllLanes, place < n_places && SlotOf(args.places[place]) == slot);
    if (place % kWarp == 0 && place < n_places) same->bits[place / kWarp] = bits;
  }
}

// The first of every eight places with the same expert does the work of all eight. Returns how many
// they are if `place` is one of those, else 0; members get them. One warp; a barrier must follow.
__device__ int Members(const SameExpert& same, int n_places, int place, int* members) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int before = 0, n = 0;
  for (int first = 0; first < n_places; first += kWarp) {
    const unsigned bits = same.bits[first / kWarp];
    const int here = place - first;
    const unsigned earlier = here >= kWarp ? kAllLanes : here < 0 ? 0 : (1u << here) - 1;
    before += __popc(bits & earlier);
    const unsigned from = bits & ~earlier;
    const int rank = n + __popc(from & ((1u << lane) - 1));
    if (members != nullptr && (from >> lane & 1) != 0 && rank < kMmaRows) {
      members[rank] = first + lane;
    }
    n += __popc(from);
  }
  return before % kMmaRows != 0 ? 0 : min(n, kMmaRows);
}

// One block: 16 outputs of gate and of up of one expert, for the places that it serves. The warps
// of a matrix take the strip's tiles in turn.
template <bool kIsOne>
__global__ void __launch_bounds__(kGateThreads, 4) GateUp(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ float partial[kGateWarps][kMmaRows][kRowsATile];
  __shared__ SameExpert same;
  __shared__ int members[kMmaRows];

  const ExpertsShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int strip = static_cast<int>(blockIdx.x), place = static_cast<int>(blockIdx.y);
  const SlotMatrix& matrix = warp < kGateSplit ? shape.gate : shape.up;
  const int n_tiles = shape.width / kColumnsATile, first_tile = warp % kGateSplit;

  // Stage 1: whose expert this is. Every warp finds out by itself; the first writes it down.
  JoinChain();
  const uint8_t* slot = SlotOf(args.places[place]);
  int n_members = 1;
  if constexpr (!kIsOne) {
    FindSame(args, slot, &same);
    if (slot == nullptr) return;  // the whole block
    __syncthreads();              // orders `same` before its readers
    n_members = Members(same, shape.n_rows * shape.top_k, place, warp == 0 ? members : nullptr);
    if (n_members == 0) return;  // the whole block
  } else {
    if (slot == nullptr) return;
    if (threadIdx.x == 0) members[0] = place;
  }

  // Stage 2: the first weights are under way while the rows of h are rounded.
  const int64_t first_at = int64_t{strip} * n_tiles;
  const uint8_t* const codes = slot + matrix.data + first_at * MmaTile<4>::kBytes + LaneCodes(lane);
  const uint8_t* const scales = slot + matrix.scales + first_at * kScaleBytes + LaneScales(lane);
  MmaTile<4> raw[kGateDepth];
  const auto load = [&](int tile, MmaTile<4>& to) {
    LoadMmaTile(codes + tile * MmaTile<4>::kBytes, scales + tile * kScaleBytes, tile < n_tiles, to);
  };
#pragma unroll
  for (int d = 0; d < kGateDepth; ++d) load(first_tile + d * kGateSplit, raw[d]);
  const float gate_factor = LoadFactor(slot, shape.gate), up_factor = LoadFactor(slot, shape.up);
  if constexpr (!kIsOne) __syncthreads();  // orders `members` before its readers
  const auto row_of = [&](int member) { return kIsOne ? 0 : members[member] / shape.top_k; };
  const StagedRows x = StagedIn(shared, n_members, shape.width);
  if (args.rounded.words != nullptr) {
    StageCopies(n_members, shape.width, args.rounded, row_of, x);
  } else {
    StageRounded<4>(
        n_members, shape.width,
        [&](int member, int column) {
          return *reinterpret_cast<const float4*>(args.h + int64_t{row_of(member)} * shape.width +
                                                  column);
        },
        [](int) { return 1.f; }, x);
  }
  const MmaLane mine(lane, n_members);
  const DecodeLevels levels = args.levels;
  __syncthreads();  // orders x before its readers

  // Stage 3: the warp's tiles.
  MmaSums sums;
  for (int first = first_tile; first < n_tiles; first += kGateDepth * kGateSplit) {
    AddMmaTiles<kIsOne>(
        raw, levels, x, first, kGateSplit, n_tiles, n_members, mine, sums,
        [&](int d, MmaTile<4>& to) { load(first + (kGateDepth + d) * kGateSplit, to); });
  }
  StoreSums(sums, lane, n_members, partial[warp]);
  __syncthreads();  // orders `partial` before its readers

  // Stage 4: act = silu(gate) * up.
  const int member = static_cast<int>(threadIdx.x) / kRowsATile;
  const int r = static_cast<int>(threadIdx.x) % kRowsATile;
  if (member >= n_members) return;
  float gate = 0, up = 0;
  for (int w = 0; w < kGateSplit; ++w) {
    gate += partial[w][member][r];
    up += partial[kGateSplit + w][member][r];
  }
  gate *= gate_factor / args.levels.scale;
  up *= up_factor / args.levels.scale;
  args.act[int64_t{members[member]} * shape.inner + strip * kRowsATile + r] =
      gate / (1.f + expf(-gate)) * up;
}

constexpr int kDownWarps = 16, kDownThreads = kDownWarps * kWarp;
constexpr int kDownDepth = 4;  // with five, registers overflow

// One tile of a row's experts: null where the expert is not here.
struct Unit {
  const uint8_t* codes;
  const uint8_t* scales;
};

// One block: 16 outputs of one row. The warps take the tiles of all the row's experts in turn and
// add them up as they come, each times its expert's weight, kDownDepth of them under way.
__global__ void __launch_bounds__(kDownThreads, 2) Down(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ float partial[kDownWarps][kMmaRows][kRowsATile];
  __shared__ float weights[kMaxTopK];

  const ExpertsShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int strip = static_cast<int>(blockIdx.x), row = static_cast<int>(blockIdx.y);
  const ExpertPlace* places = args.places + row * shape.top_k;
  const int n_tiles = shape.inner / kColumnsATile, n_units = shape.top_k * n_tiles;
  const int n_act = shape.top_k * shape.inner;
  auto* const units = reinterpret_cast<Unit*>(shared);
  const StagedRows x = StagedIn(units + n_units, 1, n_act);
  auto* const act = reinterpret_cast<float4*>(reinterpret_cast<uint8_t*>(units + n_units) +
                                              StagedBytes(1, n_act));

  // Stage 1: where the row's tiles are. The places were there before the kernel that this one
  // follows had begun.
  for (int u = static_cast<int>(threadIdx.x); u < n_units; u += kDownThreads) {
    const uint8_t* slot = SlotOf(places[u / n_tiles]);
    const int64_t at = int64_t{strip} * n_tiles + u % n_tiles;
    units[u] = {slot == nullptr ? nullptr : slot + shape.down.data + at * MmaTile<4>::kBytes,
                slot + shape.down.scales + at * kScaleBytes};
  }
  const int k = static_cast<int>(threadIdx.x);
  if (k < shape.top_k) {
    const uint8_t* slot = SlotOf(places[k]);
    weights[k] = slot == nullptr
                     ? 0.f
                     : __ldcg(&places[k].weight) * FactorOf(slot, shape.down, args.levels.scale);
  }
  __syncthreads();  // orders units and weights before their readers

  // Stage 2: the first weights are under way while act is waited for and rounded.
  const int lane_codes = LaneCodes(lane), lane_scales = LaneScales(lane);
  MmaTile<4> raw[kDownDepth];
  const auto load = [&](int unit, MmaTile<4>& to) {
    const Unit at = unit < n_units ? units[unit] : Unit{nullptr, nullptr};
    LoadMmaTile(at.codes + lane_codes, at.scales + lane_scales, at.codes != nullptr, to);
  };
#pragma unroll
  for (int d = 0; d < kDownDepth; ++d) load(warp + d * kDownWarps, raw[d]);
  JoinChain();
  // A thread's part of act comes all at once; that of an expert that is not here was never written.
  const float* const from = args.act + int64_t{row} * n_act;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < n_act / 4; at += kDownThreads) {
    if (units[at * 4 / kColumnsATile].codes == nullptr) {
      act[at] = make_float4(0.f, 0.f, 0.f, 0.f);
    } else {
      CopyAsync16(act + at, from + at * 4);
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  StageRounded<4>(
      1, n_act, [&](int, int column) { return act[column / 4]; },
      [&](int unit) { return weights[unit / n_tiles]; }, x);
  const MmaLane mine(lane, 1);
  const DecodeLevels levels = args.levels;
  __syncthreads();  // orders x before its readers

  // Stage 3: the warp's tiles.
  MmaSums sums;
  for (int first = warp; first < n_units; first += kDownDepth * kDownWarps) {
    AddMmaTiles<true>(
        raw, levels, x, first, kDownWarps, n_units, 1, mine, sums,
        [&](int d, MmaTile<4>& to) { load(first + (kDownDepth + d) * kDownWarps, to); });
  }
  StoreSums(sums, lane, 1, partial[warp]);
  __syncthreads();  // orders `partial` before its readers

  // Stage 4: sums over the warps.
  if (k >= kRowsATile) return;
  float total = 0;
  for (int w = 0; w < kDownWarps; ++w) total += partial[w][0][k];
  args.out[int64_t{row} * shape.width + strip * kRowsATile + k] = total;
}

bool IsValid(const ExpertsShape& shape) {
  return shape.n_rows >= 0 && shape.n_rows <= kMmaRows && shape.top_k >= 1 &&
         shape.top_k <= kMaxTopK && shape.width > 0 && shape.width % kColumnsATile == 0 &&
         shape.inner > 0 && shape.inner % kColumnsATile == 0;
}

}  // namespace

cudaError_t DecodeExpertsCuda(const ExpertsShape& shape, const DecodeLevels& levels,
                              const ExpertPlace* places, const float* h, const RoundedRows& rounded,
                              float* act, float* out, cudaStream_t stream) {
  if (!IsValid(shape)) return cudaErrorInvalidValue;
  if (shape.n_rows == 0) return cudaSuccess;
  const Args args = {shape, levels, places, h, rounded, act, out};
  const auto strips = [](int n) { return static_cast<unsigned>(n / kRowsATile); };
  const int n_places = shape.n_rows * shape.top_k;
  // A place may repeat an expert of its row: more members than rows.
  const int most_members = shape.n_rows == 1 ? 1 : n_places < kMmaRows ? n_places : kMmaRows;
  const cudaError_t error =
      Launch(shape.n_rows == 1 ? GateUp<true> : GateUp<false>,
             {.grid = dim3(strips(shape.inner), static_cast<unsigned>(n_places)),
              .threads = kGateThreads,
              .shared_bytes = static_cast<size_t>(StagedBytes(most_members, shape.width)),
              .stream = stream},
             args);
  if (error != cudaSuccess) return error;
  const int64_t n_act = int64_t{shape.top_k} * shape.inner;
  return Launch(Down,
                {.grid = dim3(strips(shape.width), static_cast<unsigned>(shape.n_rows)),
                 .threads = kDownThreads,
                 .shared_bytes = static_cast<size_t>(n_act / kColumnsATile * sizeof(Unit) +
                                                     StagedBytes(1, n_act) + n_act * 4),
                 .stream = stream},
                args);
}

}  // namespace hearth::worker
