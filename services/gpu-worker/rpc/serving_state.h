// What the process serves and how far its start is: written by main and the store client, read by
// every call. Thread-safe.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "common/checkpoint/config.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "hearth/v1/inference.pb.h"
#include "services/gpu-worker/experts/expert_tier.h"
#include "services/gpu-worker/scheduler/scheduler.h"

namespace hearth::worker {

// All that a request needs. Borrowed parts outlive the server.
struct ServedModel {
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: the checkpoint has none
  Scheduler* scheduler = nullptr;
  SchedulerObserver* observer =
      nullptr;                        // hears of requests refused before the scheduler; may be null
  ExpertTier* expert_tier = nullptr;  // null: the backend has no expert cache
  ModelConfig config;
  v1::ModelInfo info;
};

class ServingState {
 public:
  // Null until the model is loaded.
  const ServedModel* model() const { return model_.load(); }
  void Publish(const ServedModel* model) { model_ = model; }

  void Set(v1::WorkerState state, std::string message, double loading_fraction);
  // While the store loads; ignored unless the state is STARTING or WAITING_FOR_STORE.
  void SetStoreProgress(double fraction, std::string message);
  void SetStoreConnected(bool connected) { store_connected_ = connected; }
  void SetExpertsAttached() { experts_attached_ = true; }
  void SetQueueLimit(int limit) { queue_limit_ = limit; }

  v1::WorkerState state() const;
  bool store_connected() const { return store_connected_; }
  // A segment was mapped: stays true while the store is down.
  bool experts_attached() const { return experts_attached_; }
  // Answers at once.
  v1::WorkerStatus Status() const;
  // Unavailable with the present message unless requests can be taken.
  absl::Status CheckServing() const;

 private:
  std::atomic<const ServedModel*> model_{nullptr};
  std::atomic<bool> store_connected_{false};
  std::atomic<bool> experts_attached_{false};
  std::atomic<int> queue_limit_{0};
  mutable std::mutex mutex_;
  v1::WorkerState state_ = v1::WORKER_STATE_STARTING;  // guarded by mutex_
  std::string message_ = "starting";                   // guarded by mutex_
  double loading_fraction_ = 0;                        // guarded by mutex_
};

}  // namespace hearth::worker
