// Whether the worker is alive ("") and whether it can answer now ("ready"): asked by watchdogs over
// and over, so it never waits. Thread-safe.
#pragma once

#include <chrono>
#include <memory>

#include "services/gpu-worker/rpc/serving_state.h"

namespace hearth::worker {

class Readiness {
 public:
  struct Limits {
    std::chrono::milliseconds stuck{8000};       // a step without a heartbeat
    std::chrono::milliseconds token_age{10000};  // older than that: a probe must prove it again
    std::chrono::milliseconds probe{30000};      // to produce its token
  };
  // `state` is borrowed.
  explicit Readiness(const ServingState* state) : Readiness(state, Limits()) {}
  Readiness(const ServingState* state, const Limits& limits);

  // False when the engine's thread is dead or its step doesn't move. A loading worker is alive.
  bool IsAlive() const;
  // Experts mapped, engine alive, and a token produced lately. Without one it starts a probe of one
  // token, and answers what the one before said.
  bool IsReady();

 private:
  struct Probe;
  void StartProbe(const ServedModel& model);

  const ServingState* const state_;
  const Limits limits_;
  const std::shared_ptr<Probe> probe_;  // its callback may outlive this
};

}  // namespace hearth::worker
