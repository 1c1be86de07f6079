// The experts of a prefill, by CUDA: rows grouped by expert, each expert's weights read once for
// all its rows, on tensor cores. Four steps, all enqueued without the host knowing the choice:
//
//   GroupPlacesCuda     the router's ids -> each expert's places
//   PrefillExpertsCuda  once a list of experts: those cached, then each streamed group
//   (CPU threads may compute other experts meanwhile)
//   CombinePlacesCuda   products -> rows
//
// Place p is the router's choice number p % K of row p / K. An expert's result for a row has the
// same bits whatever the batch and the list in which it comes.
//
// All return cudaErrorInvalidValue where a requirement is not met; none allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/experts.h"

namespace hearth::worker {

// The places of expert e, in rising order: order[offsets[e] .. offsets[e + 1] - 1].
struct PlaceGroups {
  int32_t* offsets = nullptr;  // [E + 1], device
  int32_t* order = nullptr;    // [n K], device
};

// ids [n_places], device, each in [0, E). E >= 1. Every 8 experts read all ids, from L2.
cudaError_t GroupPlacesCuda(int n_places, int n_experts, const int32_t* ids,
                            const PlaceGroups& groups, cudaStream_t stream);

struct PrefillExpert {
  const uint8_t* slot = nullptr;  // packed expert in device memory, at a multiple of 16 bytes;
                                  // null: not here, skipped
  int32_t expert = 0;
};

// For the experts of one list, and all their places: products[p] = weights[p] * down(silu(gate h)
// * up h), as f16.
//
//   shape    n_rows, top_k (1 .. 64) and the slots' layout (experts.h); width, inner multiples of
//   64 experts  [n_listed], device: read when the kernels run; no expert twice in one list,
//   n_listed
//            <= 4096
//   h        [n, width] f16 in tile order: ToHalfRowsCuda
//   weights  [n K] float: the router's; multiplied here, so that what is stored is of the residual
//            stream's size, far from f16's largest
//   act      [n K, inner] f16, scratch: one for all lists of a stream
//   products [n K, width] f16, at multiples of 16 bytes as all the others; only listed experts'
//            places are written
//
// Two launches. Bytes: the listed experts once, 2 width a place and what L2 does not keep of h and
// act. Operations: 6 inner width a place.
struct PrefillPlaces {
  PlaceGroups groups;
  const uint16_t* h = nullptr;
  const float* weights = nullptr;
  uint16_t* act = nullptr;
  uint16_t* products = nullptr;
};
cudaError_t PrefillExpertsCuda(const ExpertsShape& shape, const PrefillExpert* experts,
                               int n_listed, const PrefillPlaces& places, cudaStream_t stream);

// out [n, width] = sum over the row's places, in the order of the choice, of products [n K, width]
// (weighted already), in float32. With `is_here` [E] (device) places whose expert has a zero there
// are left out: their products were computed, and are added, elsewhere. Null: all are here.
// width % 8 == 0. Bytes: 2 n K width + 4 n width.
cudaError_t CombinePlacesCuda(int n_rows, int top_k, int width, const int32_t* ids,
                              const uint8_t* is_here, const uint16_t* products, float* out,
                              cudaStream_t stream);

}  // namespace hearth::worker
