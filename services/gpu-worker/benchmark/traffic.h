// Bytes that a step must touch, computed from shapes: what bounds decoding, and what the report's
// share of the memory bandwidth is of. Weights count as the engine's reference reads them (4-bit
// codes with one float32 scale a block, bf16), each once a step; caches may save some of it.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace hearth::worker {

struct Traffic {
  double dense_bytes = 0;          // every layer's weights but routed experts
  double head_bytes = 0;           // once a step that gives logits
  double embedding_row_bytes = 0;  // a token
  double expert_bytes = 0;         // one routed expert
  double state_bytes = 0;          // delta-net states of a sequence, read and written in a step
  double kv_token_bytes = 0;       // keys and values of one position in all layers
  // A multi-token prediction head: what each step of an engine that guesses adds to dense_bytes
  // already, and what a guess touches, head and routed experts excepted.
  double draft_bytes = 0;
  double draft_kv_token_bytes = 0;  // in kv_token_bytes already
};
// `with_mtp`: of an engine that uses the checkpoint's multi-token prediction head.
absl::StatusOr<Traffic> ComputeTraffic(const Checkpoint& checkpoint, bool is_exact,
                                       bool with_mtp = false);

struct StepTraffic {
  int64_t rows = 0;
  int64_t sequences = 0;
  int64_t kv_positions = 0;  // that attention reads, over all sequences
  uint64_t experts = 0;      // different ones, over all layers
  bool has_logits = true;
};
double StepBytes(const Traffic& traffic, const StepTraffic& step);
// Of one guess for each of step.sequences.
double DraftBytes(const Traffic& traffic, const StepTraffic& step);

// Bytes of everything that is kept in memory but the routed experts.
absl::StatusOr<uint64_t> DenseMemory(const Checkpoint& checkpoint, bool is_exact,
                                     bool with_mtp = false);

}  // namespace hearth::worker
