// The dense weights in the form that the fast CPU backend reads: 4-bit linears in tiles, the head
// in 8 bits, plain linears as they are, all in memory of their own.
#pragma once

#include "absl/status/statusor.h"
#include "common/base/page_buffer.h"
#include "services/gpu-worker/engine/weights.h"

namespace hearth::worker {

// What the fast backend makes of a dense linear, without places.
LinearRef FastForm(const LinearRef& linear, bool is_head);

// Points the linears of `weights` into the result, which must live as long as they. The embedding
// stays in the checkpoint: a row a token is read of it. ResourceExhausted without enough memory.
absl::StatusOr<PageBuffer> TileWeights(ModelWeights& weights, int n_threads);

}  // namespace hearth::worker
