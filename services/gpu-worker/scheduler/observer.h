// What the scheduler tells about its work; rpc/metrics.h turns it into Prometheus metrics.
#pragma once

#include <chrono>

#include "absl/status/status.h"
#include "services/gpu-worker/scheduler/request.h"

namespace hearth::worker {

// Called on the engine's thread, except OnRefused: must be quick.
class SchedulerObserver {
 public:
  using Seconds = std::chrono::duration<double>;
  virtual ~SchedulerObserver() = default;
  virtual void OnRefused(absl::StatusCode /*code*/) {}  // any thread
  virtual void OnFirstToken(Seconds /*since_submit*/, int /*prompt_tokens*/) {}
  virtual void OnToken(Seconds /*since_previous*/) {}  // not for the first
  virtual void OnFinished(FinishReason /*reason*/, Seconds /*since_submit*/, int /*tokens*/) {}
  virtual void OnFailed(absl::StatusCode /*code*/, int /*tokens*/) {}
  virtual void OnPreempted() {}
  // Of a step with guesses: how many there were, and how many were right and used.
  virtual void OnGuesses(int /*guessed*/, int /*right*/) {}
  virtual void OnStep(Seconds /*duration*/, int /*prefill_tokens*/, int /*decode_tokens*/) {}
};

}  // namespace hearth::worker
