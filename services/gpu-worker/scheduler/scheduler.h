// The engine's thread and the way to it: requests come from any thread into a bounded queue, their
// tokens leave through each request's OutputStream. ContinuousBatch decides what each step
// computes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/gpu-worker/scheduler/batch.h"

namespace hearth::worker {

struct SchedulerOptions {
  BatchOptions batch;
  int queue_limit = 64;                    // requests accepted beyond max_sequences
  int64_t context_tokens = 4096;           // prompt + output of one request
  std::function<void()> before_step = {};  // on the engine's thread, between steps; may be null
  // On the engine's thread, which ends then: a device failed for good, and why. May be null.
  std::function<void(const absl::Status&)> on_lost = {};
};

// A snapshot for status, health and metrics.
struct SchedulerStatus {
  bool is_running = false;  // the engine's thread lives
  bool is_draining = false;
  int n_running = 0;
  int n_waiting = 0;
  int64_t ms_since_last_token = -1;  // -1: none yet
  int64_t ms_since_progress = 0;     // since the engine's heartbeat; 0 while there is nothing to do
  int64_t pages_used = 0;
  int64_t pages_total = 0;
};

class Scheduler {
 public:
  // Borrows all but the options. InvalidArgument for options that don't fit together.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Start(Engine& engine,
                                                          const Tokenizer& tokenizer,
                                                          const SchedulerOptions& options,
                                                          SchedulerObserver& observer);
  ~Scheduler();

  // Thread-safe and quick. ResourceExhausted when the queue is full, Unavailable when draining or
  // when a device failed, InvalidArgument for a prompt that can never fit. On an error the stream
  // gets no event.
  absl::Status Submit(GenerationRequest request, const std::shared_ptr<OutputStream>& output);

  // Longest prompt + output: the context, or what all KV pages together hold if that is less.
  int64_t max_request_tokens() const { return max_request_tokens_; }
  int queue_limit() const { return options_.queue_limit; }

  SchedulerStatus status();

  // Refuses new requests and waits for the others; false if some were left at the deadline.
  bool Drain(Clock::time_point deadline);
  // Ends all with Unavailable and joins the thread. The destructor does it too.
  void Stop();

 private:
  // Outlives the scheduler where a client still holds its stream.
  struct Doorbell {
    std::mutex mutex;
    std::condition_variable changed;
    bool rung = false;  // guarded by mutex
  };

  Scheduler(Engine& engine, const Tokenizer& tokenizer, const SchedulerOptions& options,
            SchedulerObserver& observer);
  void Run();
  void EndThread();
  // Moves new requests into the batch; false when it is time to stop.
  bool TakeInbox();
  void Publish();
  void WaitForWork();

  Engine& engine_;
  const Tokenizer& tokenizer_;
  const SchedulerOptions options_;
  SchedulerObserver& observer_;
  int64_t max_request_tokens_ = 0;
  ContinuousBatch batch_;  // the thread's

  const std::shared_ptr<Doorbell> doorbell_ = std::make_shared<Doorbell>();
  // All guarded by doorbell_->mutex.
  std::vector<std::unique_ptr<Sequence>> inbox_;
  SchedulerStatus published_;
  std::optional<Clock::time_point> last_token_;
  std::optional<Clock::time_point> busy_since_;  // the thread works since then
  uint64_t seen_progress_ = 0;
  Clock::time_point progress_at_;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace hearth::worker
