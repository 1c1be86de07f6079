#include "services/gpu-worker/rpc/serving_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hearth::worker {
namespace {

// Of the whole start: the rest is the checkpoint and the dense weights.
constexpr double kStoreShare = 0.6;

}  // namespace

void ServingState::Set(v1::WorkerState state, std::string message, double loading_fraction) {
  const std::lock_guard lock(mutex_);
  state_ = state;
  message_ = std::move(message);
  loading_fraction_ = loading_fraction;
}

void ServingState::SetStoreProgress(double fraction, std::string message) {
  const std::lock_guard lock(mutex_);
  if (state_ != v1::WORKER_STATE_WAITING_FOR_STORE) return;
  message_ = std::move(message);
  loading_fraction_ = (1 - kStoreShare) + kStoreShare * std::clamp(fraction, 0.0, 1.0);
}

v1::WorkerState ServingState::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

v1::WorkerStatus ServingState::Status() const {
  v1::WorkerStatus status;
  {
    const std::lock_guard lock(mutex_);
    status.set_state(state_);
    status.set_message(message_);
    status.set_loading_fraction(loading_fraction_);
  }
  status.set_store_connected(store_connected_);
  status.set_queue_limit(queue_limit_);
  status.set_ms_since_last_token(-1);
  const ServedModel* model = model_.load();
  if (model == nullptr) return status;
  const SchedulerStatus scheduler = model->scheduler->status();
  status.set_n_running(scheduler.n_running);
  status.set_n_waiting(scheduler.n_waiting);
  status.set_ms_since_last_token(scheduler.ms_since_last_token);
  status.set_ms_since_engine_progress(scheduler.ms_since_progress);
  status.set_kv_pages_used(static_cast<uint64_t>(scheduler.pages_used));
  status.set_kv_pages_total(static_cast<uint64_t>(scheduler.pages_total));
  return status;
}

absl::Status ServingState::CheckServing() const {
  const std::lock_guard lock(mutex_);
  if (state_ == v1::WORKER_STATE_READY) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the worker is not ready: ", message_));
}

}  // namespace hearth::worker
