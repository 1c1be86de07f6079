// Runs prompts through an engine and records where their tokens are routed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/experts/simulation/early_router.h"
#include "services/gpu-worker/experts/simulation/trace.h"

namespace hearth::worker {

struct RecordOptions {
  int max_tokens = 128;  // of each answer
  int max_batch_tokens = 512;
  std::vector<int32_t> eos_ids;
};

class RoutingRecorder {
 public:
  // `engine` is borrowed; its observer is this one's until the end. With `early` (borrowed; may be
  // null) what each router would choose a layer early is recorded too.
  RoutingRecorder(Engine* engine, std::string model, std::string fingerprint,
                  EarlyRouter* early = nullptr);
  ~RoutingRecorder();
  RoutingRecorder(const RoutingRecorder&) = delete;
  RoutingRecorder& operator=(const RoutingRecorder&) = delete;

  // Reads a prompt and decodes greedily, one token a step.
  absl::Status Run(std::span<const int32_t> prompt, const RecordOptions& options);

  const RoutingTrace& trace() const { return trace_; }

 private:
  void OnTensor(std::string_view name, int rows, int columns, const float* values);
  absl::Status Step(SequenceState* state, std::span<const int32_t> tokens, bool is_prompt,
                    StepLogits* logits);

  Engine& engine_;
  EarlyRouter* const early_;
  RoutingTrace trace_;
  int32_t n_steps_ = 0, n_sequences_ = 0;
};

}  // namespace hearth::worker
