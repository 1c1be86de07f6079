// y = W x for many rows, on tensor cores: the linear layers of a prefill. Weights stay as they are
// stored (4 or 8 bits, or bf16) and are decoded on their way into registers.
//
//   x  [n_rows, in], as prefill_rows.h says; y [n_rows, out] float32; no aliasing.
//
// Tiled weights: levels[code] * scale rounded to f16 (by at most 2^-11 of itself), products with
// x's f16 summed in float32, `factor` applied to the sum. bf16 weights are exact; with x in two
// parts so are the products but for 2^-17. Sums go through `in` in order, whatever the number of
// rows: a row's result has the same bits in every batch.
//   Bytes moved: the weights and x once if L2 holds what blocks share, 4 out a row.
//   Operations: 2 * out * in a row, twice that for x in two parts.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/tensor/linear.h"
#include "services/gpu-worker/ops/cuda/linear.h"
#include "services/gpu-worker/ops/cuda/prefill_rows.h"

namespace hearth::worker {

// How many outputs and rows a block takes: changes the time, not a bit of the result. kBest chooses
// by the shape and the card; the others are for tests and measurements, and where the card's shared
// memory is too small for one, the next smaller is taken.
enum class PrefillTile { kBest, kSmall, kMedium, kLarge };

// WeightKind::kTiled4 and kTiled8 (in % 64 == 0), kBF16 (in % 8 == 0); data at a multiple of 16
// bytes, scales of 8. Meant for 9 rows and more; correct for any number. cudaErrorInvalidValue
// where a requirement is not met; neither allocates nor synchronises.
cudaError_t PrefillLinearCuda(WeightKind kind, const DeviceMatrix& weights, int n_rows,
                              const PrefillRows& x, float* y, cudaStream_t stream,
                              PrefillTile tile = PrefillTile::kBest);

}  // namespace hearth::worker
