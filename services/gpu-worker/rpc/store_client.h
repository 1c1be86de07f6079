// The worker's side of expert-store: attaches, follows its loading, notices within a second when it
// goes or comes back, reports which experts were used and fetches the profile of all that was. One
// thread; the experts themselves never pass here.
#pragma once

#include <grpcpp/client_context.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "hearth/v1/expert_store.grpc.pb.h"
#include "services/gpu-worker/experts/attached_experts.h"
#include "services/gpu-worker/experts/expert_tier.h"
#include "services/gpu-worker/rpc/serving_state.h"

namespace hearth::worker {

struct StoreClientOptions {
  std::string address;      // "unix:/run/dir/store.sock"
  std::string worker_id;    // names this worker in the store's log
  std::string fingerprint;  // Checkpoint::ExpertFingerprint()
  std::chrono::milliseconds probe_interval{1000};
  std::chrono::milliseconds report_interval{5000};
  std::chrono::milliseconds profile_interval{60000};
  ExpertTier* tier = nullptr;  // borrowed; gets the store's profile and counts uses; may be null
};

class StoreClient {
 public:
  // Starts the thread. `state` and `experts` are borrowed. `on_attached` runs on the thread each
  // time a segment was mapped; `on_refused` when the first attach can never succeed (another model,
  // another layout version): somebody has to change something.
  StoreClient(StoreClientOptions options, ServingState* state, AttachedExperts* experts,
              std::function<void()> on_attached,
              std::function<void(const absl::Status&)> on_refused);
  ~StoreClient();

 private:
  void Run();
  // One round: attach if not attached, else ask whether the store is the same.
  absl::Status Visit();
  absl::Status Attach();
  absl::Status Map(const v1::AttachResponse& response);
  void FollowLoading();
  void ReportUses();
  void FetchProfile();
  void OnLost(const absl::Status& why);
  // False when it is time to stop.
  bool WaitFor(std::chrono::milliseconds time);
  // Makes `context` the call that stopping cancels; false when it is time to stop.
  bool Begin(grpc::ClientContext* context);
  void End();

  const StoreClientOptions options_;
  ServingState* const state_;
  AttachedExperts* const experts_;
  const std::function<void()> on_attached_;
  const std::function<void(const absl::Status&)> on_refused_;
  const std::unique_ptr<v1::ExpertStore::Stub> stub_;

  // The thread's.
  std::string instance_;     // of the store that we are attached to; empty: none
  std::string trouble_;      // the reason logged last for having no experts yet
  std::string mapped_file_;  // device and inode of the segment that is mapped
  std::chrono::steady_clock::time_point reported_at_;
  std::chrono::steady_clock::time_point profile_at_;  // when it is due

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;                // guarded by mutex_
  grpc::ClientContext* call_ = nullptr;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace hearth::worker
