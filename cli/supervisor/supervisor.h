// Runs a cluster: starts the three services, restarts what dies or hangs, merges their logs, and
// stops them in order. One a run directory. Used by `hearth serve`.
//
// One thread owns all state: it waits in poll() for signals, for the children's output and for the
// watchdogs' verdicts. Children die with that thread (see ChildSpec::death_signal).
#pragma once

#include <array>
#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "cli/supervisor/child.h"
#include "cli/supervisor/cluster.h"
#include "cli/supervisor/console.h"
#include "cli/supervisor/readiness.h"
#include "cli/supervisor/restart_policy.h"
#include "cli/supervisor/watchdog.h"

namespace hearth::cli {

class Supervisor {
 public:
  // `lock` is the run directory's. Blocks SIGINT, SIGTERM, SIGHUP and SIGCHLD in this process.
  Supervisor(ClusterOptions options, UniqueFd lock);
  ~Supervisor();

  // Until a signal, or until the cluster cannot go on. The exit status: 0 after a signal, 1 when a
  // service kept dying, 2 when the user must change something. The reason is the last line on
  // standard error.
  int Run();

 private:
  using Clock = std::chrono::steady_clock;

  struct Service {
    ServiceIndex index{};
    Child child;
    uint64_t incarnation = 0;
    RestartPolicy policy;
    LineSplitter lines;
    std::deque<std::string> last_lines;  // of its output, for the reason of a failure
    bool output_is_open = false;
    bool was_asked_to_stop = false;
    std::optional<Clock::time_point> restart_at;
    std::string hang_reason;  // set when we killed it for hanging
    std::unique_ptr<Watchdog> watchdog;
  };

  void LogSegmentPlace();
  absl::Status Start(Service& service);
  absl::Status Probe(ServiceIndex index, std::chrono::milliseconds timeout) const;
  int GatewayPort() const;

  void Wait();  // in poll(), until something happens or is due
  void HandleSignals();
  void HandleVerdicts();
  void ReadOutput(Service& service);
  void OnLine(Service& service, const std::string& line);
  void ReapAndRestart();
  void OnDeath(Service& service, int wait_status);
  void StartDue(Service& service);
  std::string LastWords(const Service& service) const;

  void BeginStop(int exit_code, const std::string& reason);
  void ContinueStop();
  bool AllStopped() const;

  const ClusterOptions options_;
  UniqueFd lock_;
  Console console_;
  UniqueFd signals_, wake_;
  std::array<Service, kServices> services_;
  std::unique_ptr<ReadinessWatcher> readiness_;

  bool is_stopping_ = false;
  int exit_code_ = 0;
  std::string reason_;
  int stop_index_ = kGateway;  // the service that is being stopped: the gateway first
  Clock::time_point stop_deadline_;

  std::mutex verdicts_mutex_;
  struct Verdict {
    ServiceIndex index;
    uint64_t incarnation;
    std::string reason;
  };
  std::vector<Verdict> verdicts_ ABSL_GUARDED_BY(verdicts_mutex_);
};

}  // namespace hearth::cli
