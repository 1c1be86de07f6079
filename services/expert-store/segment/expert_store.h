// Owner of the RAM tier: reads the model, adopts or fills the segment, then keeps verifying it. One
// thread of its own; everything public is thread-safe. Knows no gRPC and no metrics library: both
// ask for status().
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/experts/segment_writer.h"
#include "services/expert-store/loading/loader.h"
#include "services/expert-store/usage/usage_profile.h"

namespace hearth::store {

using CheckpointOpener = std::function<absl::StatusOr<std::unique_ptr<Checkpoint>>()>;

struct StoreOptions {
  std::filesystem::path segment_path;
  std::filesystem::path profile_path;
  int n_threads = 1;
  ExpertLayout expert_layout = kTiledExperts;
  uint64_t load_bytes_per_second = 0;                // 0: no limit
  uint64_t verify_bytes_per_second = 1'000'000'000;  // 0: no background verification
  // From the end of one pass over all checksums to the next.
  std::chrono::milliseconds verify_interval = std::chrono::hours(1);
  bool remove_segment_on_stop = false;
};

enum class StorePhase { kReserving, kLoading, kAdopting, kReady, kFailed };

struct StoreStatus {
  StorePhase phase = StorePhase::kReserving;
  LoadProgress progress;
  double seconds = 0;       // since the start of loading; until its end once that was reached
  std::string message;      // one line for people
  bool is_adopted = false;  // the segment survived whole from an earlier process
  std::filesystem::path segment_path;
  uint64_t segment_bytes = 0;    // 0 until there is one
  uint64_t huge_page_bytes = 0;  // of it, known once it was read or written as a whole
  std::string fingerprint;       // empty until the checkpoint was read
  int n_layers = 0;              // of the segment: a multi-token prediction head has one too
  int n_experts = 0;
  uint64_t n_quarantined = 0;        // damaged and not reloaded yet
  uint64_t n_verified = 0;           // checksums that held since the start
  uint64_t n_checksum_failures = 0;  // since the start
  SegmentWriter::Counts states;      // zeros until there is a segment
};

class ExpertStore {
 public:
  // `on_loaded` is called once, on the store's thread, when the experts are there or can't be (not
  // after Stop).
  ExpertStore(StoreOptions options, CheckpointOpener open_checkpoint,
              std::function<void(const absl::Status&)> on_loaded);
  ~ExpertStore();  // Stop()

  void Start();
  // Ends loading or verification within milliseconds and waits for it. The segment stays, unless
  // the options say otherwise.
  void Stop();

  StoreStatus status() const;
  UsageProfile& profile() { return profile_; }

 private:
  void Run(std::stop_token stop);
  absl::Status Load(std::stop_token stop);
  absl::Status OpenModel();
  // True if the segment is ready afterwards; false: load into a new one.
  absl::StatusOr<bool> TryAdopt(std::stop_token stop);
  absl::Status LoadNew(std::stop_token stop);
  absl::Status Fill(std::stop_token stop);
  absl::Status Finish(std::string message, bool is_adopted);
  uint64_t CountHugePages();
  void VerifyForever(std::stop_token stop);
  void VerifyPass(std::stop_token stop);
  void Repair(int layer, int expert);

  void SetPhase(StorePhase phase, std::string message);
  void OnProgress(const LoadProgress& progress);

  const StoreOptions options_;
  const CheckpointOpener open_checkpoint_;
  const std::function<void(const absl::Status&)> on_loaded_;
  const std::chrono::steady_clock::time_point start_;
  UsageProfile profile_;
  std::unique_ptr<Checkpoint> checkpoint_;  // the store's thread only

  mutable std::mutex mutex_;
  StoreStatus status_;  // guarded by mutex_
  std::shared_ptr<SegmentWriter>
      writer_;  // pointer guarded by mutex_; shared with status() while it counts
  std::chrono::steady_clock::time_point last_log_;  // guarded by mutex_
  std::jthread thread_;
};

}  // namespace hearth::store
