#include "services/expert-store/rpc/watch_loading.h"

#include <chrono>
#include <utility>

namespace hearth::store {
namespace {

constexpr auto kTick = std::chrono::milliseconds(200);

bool IsLast(const v1::LoadingProgress& progress) {
  return progress.state() == v1::LOADING_STATE_READY ||
         progress.state() == v1::LOADING_STATE_FAILED;
}

}  // namespace

LoadingWatch::LoadingWatch(std::function<v1::LoadingProgress()> now,
                           const std::atomic<bool>* is_stopping)
    : now_(std::move(now)), is_stopping_(is_stopping) {
  message_ = now_();
  StartWrite(&message_);
}

void LoadingWatch::OnWriteDone(bool ok) {
  if (!ok || is_cancelled_) return Finish(grpc::Status::CANCELLED);
  if (IsLast(message_)) return Finish(grpc::Status::OK);
  WaitForTick();
}

// At any time there is exactly one of: a write under way, a tick to come, a finished stream. So no
// lock is needed.
void LoadingWatch::WaitForTick() {
  tick_.Set(std::chrono::system_clock::now() + kTick, [this](bool) { SendOrWait(); });
}

void LoadingWatch::SendOrWait() {
  if (is_cancelled_) return Finish(grpc::Status::CANCELLED);
  v1::LoadingProgress progress = now_();
  if (*is_stopping_ && !IsLast(progress)) {
    return Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the store is shutting down"));
  }
  message_ = std::move(progress);
  StartWrite(&message_);
}

// The tick that is under way sees the flag and finishes the stream.
void LoadingWatch::OnCancel() { is_cancelled_ = true; }

void LoadingWatch::OnDone() { delete this; }

}  // namespace hearth::store
