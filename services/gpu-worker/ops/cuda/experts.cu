#include "services/gpu-worker/ops/cuda/experts.h"
#include "services/gpu-worker/ops/cuda/tile_device.h"

namespace hearth::worker {
namespace {

struct ExpertsArgs {
  ExpertsShape shape;
  const ExpertPlace* places;
  const float* h;
  float* act;
  float* out;
};

__device__ inline RawTile<4> LoadSlotTile(const uint8_t* slot, const SlotMatrix& matrix,
                                          int64_t tile, int lane) {
  return LoadTile<4>(slot + matrix.data, reinterpret_cast<const uint16_t*>(slot + matrix.scales),
                     tile, lane);
}
__device__ inline float FactorOf(const uint8_t* slot, const SlotMatrix& matrix) {
  return *reinterpret_cast<const float*>(slot + matrix.factor);
}

constexpr int kGateWarps = 8;  // half of them take gate, half up
constexpr int kGateSplit = kGateWarps / 2;

// One block: 16 outputs of gate and of up of one place. The warps of a matrix take the strip's
// tiles in turn.
__global__ __launch_bounds__(kGateWarps* kWarp,
                             3) void GateUp(const __grid_constant__ ExpertsArgs args) {
  constexpr int kDepth = 4;
  extern __shared__ float4 shared[];
  auto* table = reinterpret_cast<float2*>(shared);
  float* x = reinterpret_cast<float*>(shared) + kTableBytes / 4;
  __shared__ float partial[kGateWarps][kRowsATile];

  const ExpertsShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int strip = static_cast<int>(blockIdx.x), place = static_cast<int>(blockIdx.y);
  const uint8_t* slot = args.places[place].slot;
  if (slot == nullptr) return;  // the whole block
  const SlotMatrix& matrix = warp < kGateSplit ? shape.gate : shape.up;
  const int n_tiles = shape.width / kColumnsATile, first_tile = warp % kGateSplit;
  RawTile<4> raw[kDepth];
  const auto load = [&](int first) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int tile = first + d * kGateSplit;
      if (tile < n_tiles) {
        raw[d] = LoadSlotTile(slot, matrix, int64_t{strip} * n_tiles + tile, lane);
      }
    }
  };

  // Stage 1: the first weights are under way while the table and h go to shared memory.
  load(first_tile);
  FillTable(shape.levels, table);
  StageRows(args.h + int64_t{place / shape.top_k} * shape.width, 1, 1, shape.width, x);
  __syncthreads();  // orders table and x before their readers

  // Stage 2: the warp's tiles.
  float acc[1][kRowsALane] = {};
  for (int first = first_tile; first < n_tiles; first += kDepth * kGateSplit) {
    if (first != first_tile) load(first);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int tile = first + d * kGateSplit;
      if (tile >= n_tiles) break;
      AddTile<4, 1>(raw[d], table, x + tile * kColumnsATile, 0, lane, 1.f, acc);
    }
  }
  const float sum = SumOfRow(acc[0], lane);
  if ((lane & 4) == 0) partial[warp][RowOfLane(lane)] = sum;
  __syncthreads();  // orders `partial` before its readers

  // Stage 3: act = silu(gate) * up.
  const int r = static_cast<int>(threadIdx.x);
  if (r >= kRowsATile) return;
  float gate = 0, up = 0;
  for (int w = 0; w < kGateSplit; ++w) {
    gate += partial[w][r];
    up += partial[kGateSplit + w][r];
  }
  gate *= FactorOf(slot, shape.gate);
  up *= FactorOf(slot, shape.up);
  args.act[int64_t{place} * shape.inner + strip * kRowsATile + r] = gate / (1.f + expf(-gate)) * up;
}

constexpr int kDownWarps = 16, kDownThreads = kDownWarps * kWarp;
constexpr int kMaxTopK = 64;

// One block: 16 outputs of one row. The warps take the tiles of all the row's experts in turn and
// add them up as they come, each times its expert's weight.
__global__ __launch_bounds__(kDownThreads, 1) void Down(const __grid_constant__ ExpertsArgs args) {
  constexpr int kDepth = 5;  // the 80 tiles of 10 experts [2048, 512] at once
  extern __shared__ float4 shared[];
  auto* table = reinterpret_cast<float2*>(shared);
  float* act = reinterpret_cast<float*>(shared) + kTableBytes / 4;
  __shared__ float partial[kDownWarps][kRowsATile];
  __shared__ const uint8_t* slots[kMaxTopK];
  __shared__ float weights[kMaxTopK];

  const ExpertsShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int strip = static_cast<int>(blockIdx.x), row = static_cast<int>(blockIdx.y);
  const ExpertPlace* places = args.places + row * shape.top_k;
  const int n_tiles = shape.inner / kColumnsATile, n_units = shape.top_k * n_tiles;

  // Stage 1: the row's places.
  const int k = static_cast<int>(threadIdx.x);
  if (k < shape.top_k) slots[k] = places[k].slot;
  __syncthreads();  // orders `slots` before its readers

  // Stage 2: the first weights are under way while table, act and factors go to shared memory.
  RawTile<4> raw[kDepth];
  const auto load = [&](int first) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int unit = first + d * kDownWarps;
      if (unit >= n_units) break;
      const uint8_t* slot = slots[unit / n_tiles];
      if (slot == nullptr) continue;
      raw[d] = LoadSlotTile(slot, shape.down, int64_t{strip} * n_tiles + unit % n_tiles, lane);
    }
  };
  load(warp);
  if (k < shape.top_k) {
    weights[k] = slots[k] == nullptr ? 0.f : places[k].weight * FactorOf(slots[k], shape.down);
  }
  FillTable(shape.levels, table);
  StageRows(args.act + int64_t{row} * shape.top_k * shape.inner, shape.top_k, shape.top_k,
            shape.inner, act);
  __syncthreads();  // orders table, act and weights before their readers

  // Stage 3: the warp's tiles.
  float acc[1][kRowsALane] = {};
  for (int first = warp; first < n_units; first += kDepth * kDownWarps) {
    if (first != warp) load(first);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int unit = first + d * kDownWarps;
      if (unit >= n_units) break;
      if (slots[unit / n_tiles] == nullptr) continue;  // its act was never written
      // Units of one expert lie side by side in act.
      AddTile<4, 1>(raw[d], table, act + unit * kColumnsATile, 0, lane, weights[unit / n_tiles],
                    acc);
    }
  }
  const float sum = SumOfRow(acc[0], lane);
  if ((lane & 4) == 0) partial[warp][RowOfLane(lane)] = sum;
  __syncthreads();  // orders `partial` before its readers

  // Stage 4: sums over the warps.
  if (k >= kRowsATile) return;
  float total = 0;
  for (int w = 0; w < kDownWarps; ++w) total += partial[w][k];
  args.out[int64_t{row} * shape.width + strip * kRowsATile + k] = total;
}

bool IsValid(const ExpertsShape& shape) {
  return shape.n_rows >= 0 && shape.top_k >= 1 && shape.top_k <= kMaxTopK && shape.width > 0 &&
         shape.width % kColumnsATile == 0 && shape.inner > 0 && shape.inner % kColumnsATile == 0 &&
         shape.n_rows <= 65535 / shape.top_k;  // the grid's second dimension
}

template <typename Kernel>
cudaError_t Launch(Kernel kernel, dim3 grid, int n_threads, int n_values, const ExpertsArgs& args,
                   cudaStream_t stream) {
  const size_t bytes = kTableBytes + static_cast<size_t>(n_values) * 4;
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  kernel<<<grid, static_cast<unsigned>(n_threads), bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t ExpertsCuda(const ExpertsShape& shape, const ExpertPlace* places, const float* h,
                        float* act, float* out, cudaStream_t stream) {
  if (!IsValid(shape)) return cudaErrorInvalidValue;
  if (shape.n_rows == 0) return cudaSuccess;
  const ExpertsArgs args = {shape, places, h, act, out};
  const auto strips = [](int n) { return static_cast<unsigned>(n / kRowsATile); };
  const auto n_rows = static_cast<unsigned>(shape.n_rows);
  const cudaError_t error =
      Launch(GateUp, dim3(strips(shape.inner), n_rows * static_cast<unsigned>(shape.top_k)),
             kGateWarps * kWarp, shape.width, args, stream);
  if (error != cudaSuccess) return error;
  return Launch(Down, dim3(strips(shape.width), n_rows), kDownThreads, shape.top_k * shape.inner,
                args, stream);
}

}  // namespace hearth::worker
