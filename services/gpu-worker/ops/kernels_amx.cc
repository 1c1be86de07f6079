// AVX-512's kernels, with the products of whole groups of rows by AMX tiles: 64 columns of 16
// weight rows times up to 8 rows of activations in one instruction. Compiled for AMX-INT8; called
// only where CPU and operating system have it.
#define HEARTH_ISA amx
#include "services/gpu-worker/ops/simd_avx512.h"
// After the types:
#include "services/gpu-worker/ops/kernels_inl.h"

namespace hearth::worker {
namespace amx {
namespace {

// Fewer rows than this are quicker by vectors: a tile's way there and back costs the same for one.
constexpr int kLeastRows = 4;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// The tile instructions' intrinsics don't say that they read and write memory.
inline void MemoryBarrier() { asm volatile("" ::: "memory"); }

// Tile 0: sums [rows, 16] of int32. Tile 1: activations [rows, 64]. Tile 2: weights, 4 columns of
// 16 rows a tile row.
inline void Configure(int n_rows) {
  TileConfig config;
  for (int t = 0; t < 3; ++t) {
    config.row_bytes[t] = 64;
    config.rows[t] = static_cast<uint8_t>(t == 2 ? 16 : n_rows);
  }
  asm volatile("" ::"r"(&config) : "memory");  // the whole of it is read, says this
  _tile_loadconfig(&config);
}

template <bool kIs4Bit>
void TileStrip(const TiledMatrix& matrix, int64_t strip, const RowGroup& rows, float* out,
               int64_t stride) {
  constexpr int kTileBytes = kIs4Bit ? 512 : 1024;
  const int n = rows.n_rows;
  const uint8_t* tile = matrix.data + strip * matrix.n_tiles * kTileBytes;
  const uint16_t* scales = matrix.scales + strip * matrix.n_tiles * kLanes;
  const int8_t* q = rows.q;
  const BlockScale* x_scales = rows.scales;
  const Levels levels(matrix.levels);
  alignas(64) uint8_t weights[1024];
  alignas(64) int32_t sums[kMaxGroup * kLanes];
  V total[kMaxGroup];
  for (int t = 0; t < n; ++t) total[t] = Zero();
  Configure(n);
  for (int64_t b = 0; b < matrix.n_tiles; ++b) {
    const uint8_t* operand = tile;
    if constexpr (kIs4Bit) {
      for (int c = 0; c < 8; ++c) {
        const Bytes codes = LoadBytes(tile + c * 64);
        _mm512_store_si512(weights + c * 64, LowLevels(codes, levels).v);
        _mm512_store_si512(weights + 512 + c * 64, HighLevels(codes, levels).v);
      }
      operand = weights;
    }
    MemoryBarrier();
    _tile_zero(0);
    _tile_loadd(1, q, 64);
    _tile_loadd(2, operand, 64);
    _tile_dpbsud(0, 1, 2);
    _tile_stored(0, sums, 64);
    MemoryBarrier();
    const V scale = LoadF16(scales);
    for (int t = 0; t < n; ++t) {
      const Sums sum = {_mm512_add_epi32(_mm512_load_si512(sums + t * kLanes),
                                         _mm512_set1_epi32(x_scales[t].offset))};
      total[t] = Fma(ToFloat(sum) * Set(x_scales[t].scale), scale, total[t]);
    }
    tile += kTileBytes;
    scales += kLanes;
    q += n * kBlock;
    x_scales += n;
  }
  _tile_release();
  for (int t = 0; t < n; ++t) Store(total[t] * Set(matrix.factor), out + t * stride);
}

template <bool kIs4Bit>
void AnyTileStrip(const TiledMatrix& matrix, int64_t strip, const RowGroup& rows, float* out,
                  int64_t stride) {
  if (rows.n_rows < kLeastRows) return AnyStrip<kIs4Bit>(matrix, strip, rows, out, stride);
  TileStrip<kIs4Bit>(matrix, strip, rows, out, stride);
}

constexpr Kernels MakeAmxKernels() {
  Kernels kernels = MakeKernels("amx");
  kernels.tiled4 = AnyTileStrip<true>;
  kernels.tiled8 = AnyTileStrip<false>;
  return kernels;
}

}  // namespace
}  // namespace amx

extern const Kernels kAmxKernels;
const Kernels kAmxKernels = amx::MakeAmxKernels();

}  // namespace hearth::worker
