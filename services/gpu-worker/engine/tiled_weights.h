// The dense weights in the form that the fast CPU backend reads: 4-bit linears in tiles, the head
// in 8 bits, plain linears as they are, all in memory of their own.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/page_buffer.h"
#include "services/gpu-worker/engine/weights.h"

namespace hearth::worker {

// Who reads them.
enum class DenseReader {
  kCpu,        // plain linears as they are
  kCuda,       // plain ones in bf16 as they are, others as float32
  kCudaExact,  // all but those in bf16 as float32
};

// What becomes of a dense linear, without places.
LinearRef DenseForm(const LinearRef& linear, bool is_head, DenseReader reader);
inline LinearRef FastForm(const LinearRef& linear, bool is_head) {
  return DenseForm(linear, is_head, DenseReader::kCpu);
}

// The linears that TileWeights moves.
std::vector<OwnedLinear*> DenseLinears(ModelWeights& weights);
// Bytes that it will take.
uint64_t TiledBytes(ModelWeights& weights, DenseReader reader);

// Points the linears of `weights` into the result, which must live as long as they. The embedding
// stays in the checkpoint: a row a token is read of it. ResourceExhausted without enough memory.
absl::StatusOr<PageBuffer> TileWeights(ModelWeights& weights, int n_threads,
                                       DenseReader reader = DenseReader::kCpu);

}  // namespace hearth::worker
