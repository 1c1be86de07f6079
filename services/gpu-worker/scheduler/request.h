// What enters the scheduler and what comes out of it. Free of gRPC: rpc/ translates.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "services/gpu-worker/sampling/params.h"
#include "services/gpu-worker/sampling/sampler.h"

namespace hearth::worker {

using Clock = std::chrono::steady_clock;

struct GenerationRequest {
  std::vector<int32_t> prompt;  // >= 1 ids, each in the vocabulary
  SamplingParams sampling;
  std::vector<std::string> stop_strings;
  std::vector<int32_t>
      stop_ids;            // end the text: the checkpoint's eos ids unless ignored, and others
  int64_t max_tokens = 1;  // >= 1; cut to what the context holds
  Clock::time_point deadline = Clock::time_point::max();
  std::string echo;  // sent before the first token
  bool return_token_ids = false;
  bool opens_reasoning = false;  // the prompt ends inside the reasoning: passed on to Started
  bool is_probe = false;  // the worker's own test of itself: passes the queue's limit, not counted
};

enum class FinishReason { kStop, kLength };

struct StartedEvent {
  int prompt_tokens = 0;
  bool opens_reasoning = false;
};

struct DeltaEvent {
  std::string text;  // whole UTF-8 characters
  std::vector<int32_t> token_ids;
  std::vector<SampledToken> logprobs;
};

struct FinishEvent {
  FinishReason reason = FinishReason::kStop;
  int prompt_tokens = 0;
  int completion_tokens = 0;  // with the token that ended it
  uint64_t seed = 0;
  std::string stop_string;
};

// One Started, any number of Deltas, then one FinishEvent; or, at any place, an error that ends it.
using GenerationEvent = std::variant<StartedEvent, DeltaEvent, FinishEvent, absl::Status>;

inline bool EndsStream(const GenerationEvent& event) {
  return std::holds_alternative<FinishEvent>(event) || std::holds_alternative<absl::Status>(event);
}

}  // namespace hearth::worker
