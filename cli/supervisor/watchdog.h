// A thread that probes one child over and over and says when it hangs. Used by the supervisor.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "cli/supervisor/hang_detector.h"

namespace hearth::cli {

class Watchdog {
 public:
  // Asks the child over a new connection; blocks no longer than the timeout.
  using Probe = std::function<absl::Status(std::chrono::milliseconds timeout)>;
  // Called on the watchdog's thread with the number given to Watch and the reason.
  using OnHang = std::function<void(uint64_t incarnation, const std::string& reason)>;

  Watchdog(Probe probe, const HangLimits& limits, OnHang on_hang);
  ~Watchdog();

  // A new incarnation of the child was started: probe it from now on.
  void Watch(uint64_t incarnation);
  // The child is gone or is being stopped: do not probe.
  void Pause();

 private:
  void Run();
  // Waits for the next probe's time; false when the thread shall end.
  bool WaitForTurn(std::chrono::steady_clock::time_point turn);
  void Judge(uint64_t incarnation, const absl::Status& answer);

  const Probe probe_;
  const HangLimits limits_;
  const OnHang on_hang_;
  std::mutex mutex_;
  std::condition_variable changed_;
  HangDetector detector_ ABSL_GUARDED_BY(mutex_);
  uint64_t incarnation_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_watching_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: starts when the rest exists
};

}  // namespace hearth::cli
