// The CPU's half of a step: answers the GPU's requests for experts that are not in VRAM
// (ops/cuda/exchange.h), computing them where the store keeps them. The engine's thread serves
// while it waits for the GPU; the thread pool helps.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "services/gpu-worker/engine/cuda/device_weights.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/ops/cuda/device.h"
#include "services/gpu-worker/ops/cuda/exchange.h"
#include "services/gpu-worker/ops/ops.h"
#include "services/gpu-worker/ops/parallel.h"

namespace hearth::worker {

class MissServer {
 public:
  struct Shape {
    int max_rows = 0;
    int top_k = 0;
    int n_experts = 0;
    int width = 0;
    uint64_t await_nanoseconds = kAwaitNanoseconds;  // how long the GPU waits for an answer
  };
  static absl::StatusOr<std::unique_ptr<MissServer>> Create(const Shape& shape, Ops* ops,
                                                            Parallel* parallel,
                                                            ExpertSource* experts);

  // The same over memory of the caller's, who plays the GPU: for tests.
  static std::unique_ptr<MissServer> Over(const Exchange& exchange, const Shape& shape, Ops* ops,
                                          Parallel* parallel, ExpertSource* experts);

  const Exchange& exchange() const { return exchange_; }

  // Serves until `done`, which is asked again and again. Internal for a GPU error (seen on
  // `stream`) or a wait that timed out; else the first error of an expert, while the GPU got zeros
  // for it, so that the step ends.
  absl::Status ServeUntil(cudaStream_t stream, const std::function<bool()>& done);
  // After a step that failed, whatever of it is still enqueued: serves until `stream` is idle, so
  // that the next step finds a GPU that asks for nothing, and forgets a wait that timed out.
  void Settle(cudaStream_t stream);
  // Whether the GPU has asked for what was not answered yet.
  bool has_request() const;
  // Steps that the GPU has finished since the start.
  uint32_t StepsDone() const;
  // Grows while the GPU passes layers; any thread.
  uint64_t heartbeat() const;

  // Since the start: requests served, experts computed, time spent on them.
  struct Counts {
    uint64_t requests = 0, experts = 0;
    double seconds = 0;
  };
  const Counts& counts() const { return counts_; }
  // Of the last decode step that is done, as the GPU measured it.
  const StepTimes& step_times() const { return exchange_.request->times; }

 private:
  MissServer(const Shape& shape, Ops* ops, Parallel* parallel, ExpertSource* experts)
      : shape_(shape), ops_(*ops), parallel_(*parallel), experts_(*experts) {}
  bool ServeOne();
  // A request as it was when it was read: after a wait that timed out the GPU may write the next.
  struct Request {
    int layer = 0, n_rows = 0;
  };
  absl::Status ReadRequest(Request* request);
  absl::Status SortMisses();
  absl::Status Compute(const Request& request);

  const Shape shape_;
  Ops& ops_;
  Parallel& parallel_;
  ExpertSource& experts_;
  PinnedBuffer memory_;
  DeviceBuffer<uint32_t> counters_;
  DeviceBuffer<StepClock> clock_;
  Exchange exchange_;
  uint32_t answered_ = 0;
  absl::Status error_;  // since ServeUntil began
  Counts counts_;
  // Scratch.
  std::vector<MissedPlace> misses_, sorted_;
  std::vector<size_t> first_of_;  // [E + 1]
  RouterChoice choice_;
  std::vector<ExpertWork> work_;
};

}  // namespace hearth::worker
