#include "services/gpu-worker/scheduler/output_stream.h"

#include <utility>

namespace hearth::worker {

void OutputStream::Push(GenerationEvent event) {
  {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    size_ = events_.size();
  }
  if (on_event_) on_event_();
}

std::optional<absl::Status> OutputStream::cancel_reason() const {
  if (!cancelled_) return std::nullopt;
  const std::lock_guard lock(mutex_);
  return reason_;
}

std::optional<GenerationEvent> OutputStream::Pop() {
  std::optional<GenerationEvent> event;
  bool has_room_again = false;
  {
    const std::lock_guard lock(mutex_);
    if (events_.empty()) return std::nullopt;
    event = std::move(events_.front());
    events_.pop_front();
    has_room_again = events_.size() + 1 == capacity_;
    size_ = events_.size();
  }
  if (has_room_again) Wake();
  return event;
}

void OutputStream::Cancel(absl::Status reason) {
  {
    const std::lock_guard lock(mutex_);
    if (reason_.has_value()) return;
    reason_ = std::move(reason);
    cancelled_ = true;
  }
  Wake();
}

void OutputStream::SetWake(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
}

void OutputStream::Wake() {
  std::function<void()> wake;
  {
    const std::lock_guard lock(mutex_);
    wake = wake_;
  }
  if (wake) wake();
}

}  // namespace hearth::worker
