// The experts of a decode step, by CUDA: out = sum over a row's places of weight * down(silu(gate
// h)
// * up h), each expert read from its slot in device memory, as the expert segment packs it
// (common/experts/layout.h with kTiledExperts: an expert is one plain copy from segment to slot).
//
//   places [n_rows * top_k], device memory: place p belongs to row p / top_k. A null slot is an
//   expert that is not here; it adds nothing.
//   h [n_rows, width], 16-byte aligned; act [n_rows * top_k, inner] scratch; out [n_rows, width] is
//   written, all zeros for a row without slots. No aliasing.
//
// Two launches. Sums in float32 in an order that depends on the shape alone; a row's result has the
// same bits whatever its batch. The table is read when the kernels run, so a captured graph sees
// the places of its step.
//   Bytes moved: 3 * inner * width * (1/2 + 2/64) a place, each place on its own (experts that rows
//   share come from L2). Operations: 6 * inner * width a place.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/linear.h"

namespace hearth::worker {

struct ExpertPlace {
  const uint8_t* slot = nullptr;  // at a multiple of 16 bytes
  float weight = 0;
};

// Where in a slot a matrix's parts lie, in bytes.
struct SlotMatrix {
  int64_t data = 0;    // a multiple of 16
  int64_t scales = 0;  // a multiple of 8
  int64_t factor = 0;  // of the float32 factor, which differs between experts
};

// One layout for all slots of a call: experts of one shape are packed alike.
struct ExpertsShape {
  int n_rows = 0;
  int top_k = 0;
  int width = 0;  // D: a multiple of 64
  int inner = 0;  // F: a multiple of 64
  SlotMatrix gate = {}, up = {}, down = {};
  Levels levels = {};  // of all three matrices
};

// cudaErrorInvalidValue where a requirement is not met or (width or top_k * inner) * 4 bytes and
// the kernels' own 34 KiB exceed a block's shared memory.
cudaError_t ExpertsCuda(const ExpertsShape& shape, const ExpertPlace* places, const float* h,
                        float* act, float* out, cudaStream_t stream);

}  // namespace hearth::worker
