// hearth-expert-store: the RAM tier as a process. Serves before it loads, so that progress can be
// watched.
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/logging.h"
#include "common/base/signals.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/experts/memory_room.h"
#include "common/metrics/metrics.h"
#include "common/rpc/health.h"
#include "common/rpc/server.h"
#include "common/synthetic/synthetic_checkpoint.h"
#include "services/expert-store/options.h"
#include "services/expert-store/rpc/store_metrics.h"
#include "services/expert-store/rpc/store_service.h"
#include "services/expert-store/segment/expert_store.h"

namespace hearth::store {
namespace {

constexpr auto kProfileInterval = std::chrono::seconds(30);
// No call of ours takes longer than a tick of WatchLoading, which ends with the reason. gRPC itself
// would wait for idle clients to close their connections, which takes some of them 5 s.
constexpr auto kDrain = std::chrono::milliseconds(1000);

// What ends the process: a signal, or loading that failed.
class EndOfRun {
 public:
  void Signal(int count) {
    if (count > 1) {
      std::fputs("second signal: ending at once\n", stderr);
      std::_Exit(1);
    }
    Set(absl::OkStatus());
  }
  void Set(const absl::Status& why) {
    const std::lock_guard lock(mutex_);
    if (!why_) why_ = why;
    changed_.notify_all();
  }
  // Nothing when `timeout` passed without an end.
  std::optional<absl::Status> WaitFor(std::chrono::seconds timeout) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, timeout, [&] { return why_.has_value(); });
    return why_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<absl::Status> why_;
};

StoreOptions ToStoreOptions(const CommandLine& line) {
  StoreOptions options;
  options.segment_path = line.segment;
  options.profile_path = line.run_dir / "profile.json";
  options.n_threads = line.n_threads;
  options.expert_layout = line.exact ? kPlainExperts : kTiledExperts;
  options.load_bytes_per_second = static_cast<uint64_t>(line.load_rate_mb * 1e6);
  options.verify_bytes_per_second = static_cast<uint64_t>(line.verify_rate_mb * 1e6);
  options.verify_interval =
      std::chrono::milliseconds(static_cast<int64_t>(line.verify_interval_seconds * 1000));
  options.remove_segment_on_stop = line.remove_segment_on_exit;
  return options;
}

HealthService::Answer Health(const ExpertStore& store, std::string_view service) {
  using Answer = HealthService::Answer;
  // Asked in both cases: a store whose status can't be had (a stuck lock) must not call itself
  // alive.
  const StorePhase phase = store.status().phase;
  if (service.empty()) return Answer::kServing;  // also while it loads
  if (service != "ready") return Answer::kUnknownService;
  return phase == StorePhase::kReady ? Answer::kServing : Answer::kNotServing;
}

void SaveProfile(ExpertStore& store) {
  const absl::Status saved = store.profile().SaveIfChanged();
  if (!saved.ok()) {
    LogWarning("usage profile was not saved", {{"reason", std::string(saved.message())}});
  }
}

absl::StatusOr<UniqueFd> LockSegment(const std::filesystem::path& segment) {
  auto lock = LockFile(segment.string() + ".lock");
  if (lock.ok() || absl::IsAlreadyExists(lock.status())) return lock;
  return Annotate(lock.status(),
                  absl::StrCat("--segment ", segment.string(),
                               " must be a file in a folder of this user on a tmpfs"));
}

// Runs until a signal (OK) or until loading failed.
absl::Status Serve(const CommandLine& line, EndOfRun& end) {
  HEARTH_RETURN_IF_ERROR(MakePrivateDirectory(line.run_dir));
  HEARTH_ASSIGN_OR_RETURN(const UniqueFd segment_lock, LockSegment(line.segment));
  if (!IsInMemory(line.segment.parent_path())) {
    LogWarning("the segment is on a disk: put --segment on a tmpfs",
               {{"segment", line.segment.string()}});
  }
  ExpertStore store(
      ToStoreOptions(line), [&line] { return OpenModel(line.model, line.n_threads); },
      [&end](const absl::Status& loaded) {
        if (!loaded.ok()) end.Set(loaded);
      });
  StoreService service(&store);
  HealthService health([&store](std::string_view name) { return Health(store, name); });
  HEARTH_ASSIGN_OR_RETURN(const auto server,
                          RpcServer::Start({.address = line.listen}, {&service, &health}));
  StoreMetrics metrics;
  std::unique_ptr<MetricsServer> metrics_server;
  if (!line.metrics_listen.empty()) {
    HEARTH_ASSIGN_OR_RETURN(
        metrics_server, MetricsServer::Start(line.metrics_listen, metrics.registry(),
                                             [&] { metrics.Refresh(store.status(), service); }));
    LogInfo("metrics are served", {{"port", metrics_server->port()}});
  }
  LogInfo("serving", {{"listen", line.listen},
                      {"segment", line.segment.string()},
                      {"model", line.model.string()},
                      {"threads", line.n_threads}});
  store.Start();

  std::optional<absl::Status> why;
  while (!(why = end.WaitFor(kProfileInterval))) SaveProfile(store);

  LogInfo("stopping", {{"reason", why->ok() ? "signal" : "loading failed"}});
  store.Stop();
  service.StopWatching();
  const std::chrono::milliseconds grace(static_cast<int64_t>(line.grace_seconds * 1000));
  server->Shutdown(std::min(grace, kDrain));
  SaveProfile(store);
  return *why;
}

int Main(int argc, char** argv) {
  const ParsedCommandLine parsed = ParseCommandLine(argc, argv);
  if (!parsed.command) return parsed.exit_code;
  SetLogService("expert-store");
  SetLogLevel(parsed.command->log_level);
  RaiseDescriptorLimit();
  EndOfRun end;
  const SignalWaiter signals([&end](int, int count) { end.Signal(count); });
  InstallSigbusMessage("the segment or a file of the checkpoint");
  const absl::Status status = Serve(*parsed.command, end);
  if (status.ok()) return 0;
  // Everything that ends a start is something for the user to change: model, memory, paths, another
  // instance.
  std::fprintf(stderr, "hearth-expert-store: %s\n", std::string(status.message()).c_str());
  return 2;
}

}  // namespace
}  // namespace hearth::store

int main(int argc, char** argv) { return hearth::store::Main(argc, argv); }
