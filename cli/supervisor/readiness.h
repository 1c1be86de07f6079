// Watches a starting cluster until it can answer: progress for people, then a summary of what runs.
// Used by the supervisor; a thread of its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "cli/supervisor/cluster.h"
#include "cli/supervisor/console.h"
#include "hearth/v1/expert_store.pb.h"

namespace hearth::cli {

// What the store is doing, in one line; `loading` is not READY.
std::string LoadingText(const v1::LoadingProgress& loading);

class ReadinessWatcher {
 public:
  // Borrows both. Ends by itself after the announcement.
  ReadinessWatcher(const ClusterOptions& options, Console& console);
  ~ReadinessWatcher();

  bool is_ready() const { return is_ready_; }

 private:
  void Run();
  bool IsReady(int port) const;
  void ShowProgress() const;
  void AnnounceReady(int port) const;

  const ClusterOptions& options_;
  Console& console_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool is_ending_ = false;  // under mutex_
  std::atomic<bool> is_ready_{false};
  std::thread thread_;  // last
};

}  // namespace hearth::cli
