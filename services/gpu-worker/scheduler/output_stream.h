// The bounded way from the scheduler to one client. The scheduler stops stepping a sequence whose
// stream is full; the client's side cancels through it.
//
// Thread-safe: one producer (the engine's thread), one consumer, anyone may cancel.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>

#include "services/gpu-worker/scheduler/request.h"

namespace hearth::worker {

class OutputStream {
 public:
  // `on_event` runs after each push, on the producer's thread, without a lock held; may be null.
  explicit OutputStream(std::function<void()> on_event, size_t capacity = 64)
      : on_event_(std::move(on_event)), capacity_(capacity) {}

  // Producer. Events past the capacity are kept too (an end must always fit); is_full asks to stop.
  void Push(GenerationEvent event);
  bool is_full() const { return room() == 0; }
  size_t room() const { return capacity_ - std::min(capacity_, size_.load()); }  // events
  std::optional<absl::Status> cancel_reason() const;

  // Consumer.
  std::optional<GenerationEvent> Pop();
  // The first reason counts. The scheduler ends the sequence at its next step.
  void Cancel(absl::Status reason);
  bool is_cancelled() const { return cancelled_.load(); }

  // Set by the scheduler: called when a full stream has room again, and on Cancel.
  void SetWake(std::function<void()> wake);

 private:
  void Wake();

  const std::function<void()> on_event_;
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::deque<GenerationEvent> events_;  // guarded by mutex_
  std::optional<absl::Status> reason_;  // guarded by mutex_
  std::function<void()> wake_;          // guarded by mutex_
  std::atomic<size_t> size_{0};         // events_.size(), readable without the lock
  std::atomic<bool> cancelled_{false};
};

}  // namespace hearth::worker
