#include <algorithm>

#include "services/gpu-worker/ops/cuda/prefill_linear.h"
#include "services/gpu-worker/ops/cuda/prefill_product.cuh"

namespace hearth::worker {
namespace {

struct LinearArgs {
  DeviceMatrix weights;
  int n_rows;
  int n_tiles;
  const uint16_t* x;
  int64_t low_offset;
  float* y;
};

template <WeightKind kKind>
__device__ Strip StripOf(const DeviceMatrix& weights, int64_t strip, int n_tiles) {
  if (strip * kStripRows >= weights.out) return {};
  const auto* data = static_cast<const uint8_t*>(weights.data);
  if constexpr (kKind == WeightKind::kBF16) {
    const int64_t left = weights.out - strip * kStripRows;
    return {.data = data + strip * kStripRows * weights.in * 2,
            .stride = weights.in,
            .columns = weights.in,
            .rows = left < kStripRows ? static_cast<int>(left) : kStripRows};
  } else {
    constexpr int kTileBytes = TileWeights<kKind>::kBytes - kStripRows * 2;
    return {.data = data + strip * n_tiles * kTileBytes,
            .scales = weights.scales + strip * n_tiles * kStripRows};
  }
}

template <typename Shape>
__device__ void WriteRows(const LinearArgs& args, int64_t first_strip, int64_t first_row,
                          const ProductSums<Shape>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float factor = args.weights.factor * TileWeights<Shape::kKind>::kFactor;
  const int64_t out = args.weights.out;
#pragma unroll
  for (int i = 0; i < Shape::kStrips; ++i) {
    const int64_t column = (first_strip + i) * kStripRows + lane / 4 * 2;
    if (column >= out) break;
#pragma unroll
    for (int j = 0; j < Shape::kRows / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t row = first_row + j * 8 + lane % 4 * 2 + c;
        if (row >= args.n_rows) continue;
        float* to = args.y + row * out + column;
        const float2 pair = make_float2(sums[i][j][c] * factor, sums[i][j][2 + c] * factor);
        if (out % 2 == 0) {
          *reinterpret_cast<float2*>(to) = pair;
        } else {
          to[0] = pair.x;
          if (column + 1 < out) to[1] = pair.y;
        }
      }
    }
  }
}

// Blocks a processor that registers are to suffice for.
template <typename Shape>
constexpr int kResident = Shape::kKind == WeightKind::kTiled4&& Shape::kRows == 64 ? 2 : 1;

// A block owns kWarps * kStrips strips (blockIdx.x) times kRows rows (y).
template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, kResident<Shape>)
    LinearKernel(const __grid_constant__ LinearArgs args) {
  extern __shared__ uint4 shared[];
  auto* table = reinterpret_cast<uint8_t*>(shared);
  uint8_t* stages = table + Shape::kTableBytes;
  const int64_t first_strip =
      (int64_t{blockIdx.x} * Shape::kWarps + threadIdx.x / kWarp) * Shape::kStrips;
  const int64_t first_row = int64_t{blockIdx.y} * Shape::kRows;

  Strip strips[Shape::kStrips];
#pragma unroll
  for (int i = 0; i < Shape::kStrips; ++i) {
    strips[i] = StripOf<Shape::kKind>(args.weights, first_strip + i, args.n_tiles);
  }
  RowPlaces<Shape> rows{.low_offset = args.low_offset, .columns = args.weights.in};
#pragma unroll
  for (int i = 0; i < Shape::kPieces; ++i) {
    const int64_t row = first_row + (threadIdx.x + i * Shape::kThreads) / 8;
    if (row < args.n_rows) rows.rows[i] = args.x + row * args.weights.in;
  }
  // The product's first barrier orders the table before its readers.
  if constexpr (Shape::kTableBytes > 0) {
    FillPairTable(args.weights.levels, reinterpret_cast<uint32_t*>(table));
  }
  const auto write = [&](int, const ProductSums<Shape>& sums) {
    WriteRows<Shape>(args, first_strip, first_row, sums);
  };
  MultiplyStrips<Shape>(strips, rows, OneRound{args.n_tiles}, stages, table, write);
}

template <typename Shape>
cudaError_t LaunchShape(const LinearArgs& args, cudaStream_t stream) {
  const auto* kernel = reinterpret_cast<const void*>(LinearKernel<Shape>);
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  constexpr int kOutputs = Shape::kWarps * Shape::kStrips * kStripRows;
  const dim3 grid(static_cast<unsigned>((args.weights.out + kOutputs - 1) / kOutputs),
                  static_cast<unsigned>((args.n_rows + Shape::kRows - 1) / Shape::kRows));
  LinearKernel<Shape><<<grid, Shape::kThreads, Shape::kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

template <WeightKind kKind, int kParts>
cudaError_t LaunchTile(PrefillTile tile, const LinearArgs& args, cudaStream_t stream) {
  switch (tile) {
    case PrefillTile::kSmall:
      return LaunchShape<ProductShape<kKind, 4, 1, 32, kKind == WeightKind::kBF16 ? 6 : 8, kParts>>(
          args, stream);
    case PrefillTile::kLarge:
      if constexpr (kParts == 1 && kKind != WeightKind::kBF16) {
        return LaunchShape<ProductShape<kKind, 8, 2, 128, 4, kParts>>(args, stream);
      }
      [[fallthrough]];
    default:
      if constexpr (kKind == WeightKind::kBF16) {
        return LaunchShape<ProductShape<kKind, 4, 2, 64, 3, kParts>>(args, stream);
      } else {
        return LaunchShape<ProductShape<kKind, 8, 2, 64, kKind == WeightKind::kTiled4 ? 4 : 3>>(
            args, stream);
      }
  }
}

// The tile that takes fewest cycles if each processor does its share of blocks one after the other:
// estimates of an H100's cycles a block and 64 columns, of which table and matrix loads are the
// largest part.
struct TileCost {
  PrefillTile tile;
  int outputs, rows, cycles, at_least;
};
PrefillTile BestTile(const LinearArgs& args, int n_processors) {
  static constexpr TileCost kCosts[] = {{PrefillTile::kSmall, 64, 32, 210, 400},
                                        {PrefillTile::kMedium, 256, 64, 900, 1200},
                                        {PrefillTile::kLarge, 256, 128, 1700, 1700}};
  PrefillTile best = PrefillTile::kSmall;
  int64_t fewest = INT64_MAX;
  for (const TileCost& cost : kCosts) {
    const int64_t blocks = (args.weights.out + cost.outputs - 1) / cost.outputs *
                           ((args.n_rows + cost.rows - 1) / cost.rows);
    const int64_t rounds = (blocks + n_processors - 1) / n_processors;
    const int64_t cycles =
        rounds * cost.cycles < cost.at_least ? cost.at_least : rounds * cost.cycles;
    if (cycles < fewest) fewest = cycles, best = cost.tile;
  }
  return best;
}

// Levels beyond 1 would leave f16's range with the largest scales: a power of two moves to
// `factor`.
void Normalise(DeviceMatrix* weights) {
  float largest = 0;
  for (const float level : weights->levels.values) largest = fmaxf(largest, fabsf(level));
  float by = 1;
  while (largest > by) by *= 2;
  for (float& level : weights->levels.values) level /= by;
  weights->factor *= by;
}

}  // namespace

cudaError_t PrefillLinearCuda(WeightKind kind, const DeviceMatrix& weights, int n_rows,
                              const PrefillRows& x, float* y, cudaStream_t stream,
                              PrefillTile tile) {
  const bool is_tiled = kind == WeightKind::kTiled4 || kind == WeightKind::kTiled8;
  if ((!is_tiled && kind != WeightKind::kBF16) || n_rows < 0 || weights.out < 0 ||
      weights.in <= 0 || weights.in % (is_tiled ? kTileWidth : 8) != 0) {
    return cudaErrorInvalidValue;
  }
  if (n_rows == 0 || weights.out == 0) return cudaSuccess;
  LinearArgs args{.weights = weights,
                  .n_rows = n_rows,
                  .n_tiles = static_cast<int>((weights.in + kTileWidth - 1) / kTileWidth),
                  .x = is_tiled ? x.half : x.high,
                  .low_offset = x.low == nullptr ? 0 : x.low - x.high,
                  .y = y};
  if (args.x == nullptr) return cudaErrorInvalidValue;
  if (kind != WeightKind::kTiled4) args.weights.levels = {};
  Normalise(&args.weights);
  if (kind == WeightKind::kBF16) args.weights.factor = 1;
  int device = 0, n_processors = 0, shared_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  if (tile == PrefillTile::kBest) tile = BestTile(args, n_processors);
  constexpr int kMostShared =
      std::max(ProductShape<WeightKind::kTiled4, 8, 2, 128, 4>::kSharedBytes,
               ProductShape<WeightKind::kTiled8, 8, 2, 128, 4>::kSharedBytes);
  if (tile == PrefillTile::kLarge && shared_bytes < kMostShared) tile = PrefillTile::kMedium;
  if (kind == WeightKind::kTiled4) return LaunchTile<WeightKind::kTiled4, 1>(tile, args, stream);
  if (kind == WeightKind::kTiled8) return LaunchTile<WeightKind::kTiled8, 1>(tile, args, stream);
  return x.low == nullptr ? LaunchTile<WeightKind::kBF16, 1>(tile, args, stream)
                          : LaunchTile<WeightKind::kBF16, 2>(tile, args, stream);
}

}  // namespace hearth::worker
