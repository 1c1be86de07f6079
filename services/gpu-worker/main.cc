// hearth-gpu-worker: text in, text out. Serves before it has loaded, so that its start can be
// watched.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
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
#include "common/metrics/metrics.h"
#include "common/rpc/health.h"
#include "common/rpc/server.h"
#include "services/gpu-worker/loading.h"
#include "services/gpu-worker/options.h"
#include "services/gpu-worker/rpc/inference_service.h"
#include "services/gpu-worker/rpc/readiness.h"
#include "services/gpu-worker/rpc/store_client.h"
#include "services/gpu-worker/rpc/worker_metrics.h"

namespace hearth::worker {
namespace {

constexpr std::chrono::milliseconds kLastCalls{500};  // for the ends of streams to get out

// What main waits for: experts, a signal, or something that can't be mended from inside.
class Events {
 public:
  void Signal(int count) {
    if (count > 1) {
      std::fputs("second signal: ending at once\n", stderr);
      std::_Exit(1);
    }
    SetEnd(absl::OkStatus());
  }
  void SetEnd(const absl::Status& why) {
    const std::lock_guard lock(mutex_);
    if (!end_) end_ = why;
    changed_.notify_all();
  }
  void SetAttached() {
    const std::lock_guard lock(mutex_);
    is_attached_ = true;
    changed_.notify_all();
  }
  // The end's reason, or nothing once experts are attached.
  std::optional<absl::Status> WaitUntilAttached() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_attached_ || end_; });
    return end_;
  }
  absl::Status WaitForEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return end_.has_value(); });
    return *end_;
  }
  std::optional<absl::Status> end() {
    const std::lock_guard lock(mutex_);
    return end_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_attached_ = false;         // guarded by mutex_
  std::optional<absl::Status> end_;  // guarded by mutex_
};

HealthService::Answer Health(Readiness& readiness, std::string_view service) {
  using Answer = HealthService::Answer;
  const auto answer = [](bool serving) { return serving ? Answer::kServing : Answer::kNotServing; };
  if (service.empty()) return answer(readiness.IsAlive());
  return service == "ready" ? answer(readiness.IsReady()) : Answer::kUnknownService;
}

// Loads, serves until the end, and drains.
absl::Status LoadAndServe(const CommandLine& line, Events& events, ServingState& state,
                          WorkerMetrics& metrics, RpcServer& server,
                          std::unique_ptr<LoadedModel>& model) {
  HEARTH_ASSIGN_OR_RETURN(model, LoadModel(line, state));
  state.Set(v1::WORKER_STATE_WAITING_FOR_STORE, "waiting for the expert store", 0.4);
  const StoreClient store(
      {.address = line.store,
       .worker_id = absl::StrCat("gpu-worker-", ::getpid()),
       .fingerprint = model->checkpoint->ExpertFingerprint(),
       .tier = model->served.expert_tier},
      &state, model->experts.get(), [&events] { events.SetAttached(); },
      [&events](const absl::Status& why) { events.SetEnd(why); });
  if (const auto end = events.WaitUntilAttached()) return *end;
  state.Set(v1::WORKER_STATE_WAITING_FOR_STORE, "producing the first token", 0.98);
  // Only a new process gets the device back: the supervisor starts one.
  const auto on_lost = [&events](const absl::Status& why) {
    events.SetEnd(Annotate(why, "the device failed and works no more for this process"));
  };
  HEARTH_RETURN_IF_ERROR(StartServing(line, *model, metrics, on_lost));
  state.SetQueueLimit(line.queue_limit);
  state.Publish(&model->served);
  state.Set(v1::WORKER_STATE_READY, "ready", 1);
  LogInfo("ready", {{"model", model->served.info.id()},
                    {"context_tokens", model->served.info.context_tokens()},
                    {"threads", line.n_threads},
                    {"backend", model->served.info.backend()}});

  absl::Status why = events.WaitForEnd();
  LogInfo("stopping", {{"reason", why.ok() ? "signal" : "failure"}});
  state.Set(v1::WORKER_STATE_DRAINING, "stopping", 1);
  const auto grace = std::chrono::milliseconds(static_cast<int64_t>(line.grace_seconds * 1000));
  model->scheduler->Drain(Clock::now() + grace);
  model->scheduler->Stop();
  server.Shutdown(kLastCalls);
  return why;
}

absl::Status Run(const CommandLine& line, Events& events) {
  HEARTH_RETURN_IF_ERROR(MakePrivateDirectory(line.run_dir));
  // Destroyed after the server, whose calls look at it.
  std::unique_ptr<LoadedModel> model;
  ServingState state;
  WorkerMetrics metrics;
  Readiness readiness(&state);
  InferenceService service(&state);
  HealthService health([&readiness](std::string_view name) { return Health(readiness, name); });
  HEARTH_ASSIGN_OR_RETURN(const auto server,
                          RpcServer::Start({.address = line.listen}, {&service, &health}));
  std::unique_ptr<MetricsServer> metrics_server;
  if (!line.metrics_listen.empty()) {
    const auto refresh = [&] {
      const ServedModel* served = state.model();
      if (served == nullptr) return metrics.Refresh(state, nullptr);
      metrics.Refresh(state, model->experts.get(), served->expert_tier);
    };
    HEARTH_ASSIGN_OR_RETURN(metrics_server,
                            MetricsServer::Start(line.metrics_listen, metrics.registry(), refresh));
    LogInfo("metrics are served", {{"port", metrics_server->port()}});
  }
  LogInfo("serving", {{"listen", line.listen}, {"model", line.model.string()}});
  absl::Status status = LoadAndServe(line, events, state, metrics, *server, model);
  if (!status.ok()) {
    state.Set(v1::WORKER_STATE_FAILED, "failed", 0);
    if (model != nullptr && model->scheduler != nullptr) model->scheduler->Stop();
  }
  metrics_server.reset();
  server->Shutdown(std::chrono::milliseconds(0));
  return status;
}

// 2: somebody has to change something. 1: the same start may succeed another time.
int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kInternal:
      return 1;
    default:
      return 2;
  }
}

int Main(int argc, char** argv) {
  // All of the kernels' code goes to the GPU at the start: later there may be no memory for it.
  // Read when the GPU is first asked for, which the command line does.
  ::setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  const ParsedCommandLine parsed = ParseCommandLine(argc, argv);
  if (!parsed.command) return parsed.exit_code;
  SetLogService("gpu-worker");
  SetLogLevel(parsed.command->log_level);
  RaiseDescriptorLimit();
  Events events;
  const SignalWaiter signals([&events](int, int count) { events.Signal(count); });
  InstallSigbusMessage("the experts' segment or a file of the checkpoint");
  const absl::Status status = Run(*parsed.command, events);
  if (!status.ok()) {
    std::fprintf(stderr, "hearth-gpu-worker: %s\n", std::string(status.message()).c_str());
  }
  return ExitCode(status);
}

}  // namespace
}  // namespace hearth::worker

int main(int argc, char** argv) { return hearth::worker::Main(argc, argv); }
