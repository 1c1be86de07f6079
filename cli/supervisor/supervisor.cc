#include "cli/supervisor/supervisor.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/supervisor/http_get.h"
#include "cli/supervisor/run_dir.h"
#include "common/base/check.h"
#include "common/base/json.h"
#include "common/rpc/health.h"
#include "common/rpc/server.h"

namespace hearth::cli {
namespace {

constexpr size_t kLastLines = 5;
constexpr int kUserMustChange = 2;  // exit status of a service that a restart cannot help
// Beyond the grace time that a service has itself, before it is killed.
constexpr std::chrono::seconds kStopSlack{2};
constexpr std::chrono::milliseconds kLongestWait{1000};

UniqueFd BlockSignals() {
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) {
    std::signal(number, SIG_DFL);  // a parent may have set them to be ignored
    sigaddset(&set, number);
  }
  HEARTH_CHECK(::pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  return UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

// Not while another cluster's store holds it: then it was never ours.
void RemoveSegment(const std::filesystem::path& segment) {
  const auto lock = LockFile(segment.string() + ".lock");
  if (lock.ok()) ::unlink(segment.c_str());
}

}  // namespace

Supervisor::Supervisor(ClusterOptions options, UniqueFd lock)
    : options_(std::move(options)),
      lock_(std::move(lock)),
      console_(options_.style),
      signals_(BlockSignals()),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  HEARTH_CHECK(signals_.valid() && wake_.valid());
  for (int i = 0; i < kServices; ++i) {
    const auto index = static_cast<ServiceIndex>(i);
    services_[i].index = index;
    services_[i].watchdog = std::make_unique<Watchdog>(
        [this, index](std::chrono::milliseconds timeout) { return Probe(index, timeout); },
        options_.hang_limits,
        [this, index](uint64_t incarnation, const std::string& reason) {
          const std::lock_guard guard(verdicts_mutex_);
          verdicts_.push_back({index, incarnation, reason});
          const uint64_t one = 1;
          [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof one);
        });
  }
}

// The watchdogs' threads use this object: they end before the rest of it does.
Supervisor::~Supervisor() {
  for (Service& service : services_) service.watchdog.reset();
}

int Supervisor::Run() {
  ForgetGatewayPort(options_.run_dir);
  LogSegmentPlace();
  for (Service& service : services_) {
    if (const absl::Status status = Start(service); !status.ok()) {
      BeginStop(kUserMustChange, absl::StrCat(std::string(status.message()),
                                              "; is Hearth built or installed completely?"));
      break;
    }
  }
  if (!is_stopping_) readiness_ = std::make_unique<ReadinessWatcher>(options_, console_);
  while (!AllStopped()) {
    Wait();
    HandleSignals();
    HandleVerdicts();
    for (Service& service : services_) ReadOutput(service);
    ReapAndRestart();
    if (is_stopping_) ContinueStop();
  }
  readiness_.reset();
  if (!options_.keep_segment) RemoveSegment(options_.segment);
  ForgetGatewayPort(options_.run_dir);
  if (exit_code_ != 0) {
    const std::string line = absl::StrCat("hearth serve: ", reason_, "\n");
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, line.data(), line.size());
  }
  return exit_code_;
}

// The path is one that other processes of this user can open, too.
void Supervisor::LogSegmentPlace() {
  if (options_.segment_folder >= 0) {
    console_.Event(LogLevel::kInfo, "experts go to a tmpfs in huge pages",
                   {{"segment", absl::StrCat("/proc/", ::getpid(), "/fd/", options_.segment_folder,
                                             "/", options_.segment.filename().string())}});
  } else if (!options_.no_huge_pages_reason.empty()) {
    console_.Event(
        LogLevel::kInfo, "experts go to 4 KiB pages; hearth doctor tells what gives more",
        {{"segment", options_.segment.string()}, {"reason", options_.no_huge_pages_reason}});
  }
}

absl::Status Supervisor::Start(Service& service) {
  const ChildSpec spec{.name = kServiceNames[service.index],
                       .argv = ServiceCommand(options_, service.index, GatewayPort()),
                       .inherited_fds = {lock_.get(), options_.segment_folder}};
  auto child = Child::Start(spec);
  if (!child.ok()) return child.status();
  service.child = *std::move(child);
  service.output_is_open = true;
  service.restart_at.reset();
  service.hang_reason.clear();
  service.last_lines.clear();
  service.watchdog->Watch(++service.incarnation);
  console_.Event(LogLevel::kInfo, "started", {{"child", spec.name}, {"pid", service.child.pid()}});
  return absl::OkStatus();
}

// A port that the gateway chose itself stays its port when it is started again.
int Supervisor::GatewayPort() const {
  if (options_.port != 0) return options_.port;
  return ReadGatewayPort(options_.run_dir).value_or(0);
}

absl::Status Supervisor::Probe(ServiceIndex index, std::chrono::milliseconds timeout) const {
  if (index == kStore) return ProbeHealth(StoreAddress(options_.run_dir), "", timeout);
  if (index == kWorker) return ProbeHealth(WorkerAddress(options_.run_dir), "", timeout);
  const int port = GatewayPort();
  if (port == 0) return absl::UnavailableError("it does not listen yet");
  const auto answer = HttpGet(ProbeHost(options_.host), port, "/health", timeout);
  if (!answer.ok()) return answer.status();
  if (answer->status == 200) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("/health answers ", answer->status));
}

void Supervisor::Wait() {
  std::vector<pollfd> polled = {{signals_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  Clock::time_point due = Clock::now() + kLongestWait;
  for (const Service& service : services_) {
    if (service.output_is_open) polled.push_back({service.child.output(), POLLIN, 0});
    if (service.restart_at) due = std::min(due, *service.restart_at);
  }
  if (is_stopping_) due = std::min(due, stop_deadline_);
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(due - Clock::now()).count();
  ::poll(polled.data(), polled.size(), static_cast<int>(std::max<int64_t>(0, left + 1)));
}

void Supervisor::HandleSignals() {
  signalfd_siginfo info{};
  while (::read(signals_.get(), &info, sizeof info) == sizeof info) {
    if (info.ssi_signo == SIGCHLD) continue;  // every turn of the loop reaps
    if (is_stopping_) {
      console_.Event(LogLevel::kWarning, "second signal: killing what still runs");
      for (Service& service : services_) service.child.Signal(SIGKILL);
      continue;
    }
    console_.EndProgress();
    console_.Event(LogLevel::kInfo, "stopping", {{"signal", static_cast<int>(info.ssi_signo)}});
    BeginStop(0, "");
  }
}

void Supervisor::HandleVerdicts() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &count, sizeof count);
  std::vector<Verdict> verdicts;
  {
    const std::lock_guard guard(verdicts_mutex_);
    verdicts.swap(verdicts_);
  }
  for (const Verdict& verdict : verdicts) {
    Service& service = services_[verdict.index];
    if (is_stopping_ || !service.child.is_running() || verdict.incarnation != service.incarnation) {
      continue;
    }
    console_.Event(LogLevel::kError, "service hangs, killing it",
                   {{"child", kServiceNames[verdict.index]}, {"reason", verdict.reason}});
    service.hang_reason = verdict.reason;
    service.child.Signal(SIGKILL);
  }
}

void Supervisor::ReadOutput(Service& service) {
  char buffer[16 << 10];
  while (service.output_is_open) {
    const ssize_t n = ::read(service.child.output(), buffer, sizeof buffer);
    if (n < 0) return;  // nothing more now
    if (n == 0) service.output_is_open = false;
    for (const std::string& line :
         service.lines.Append(std::string_view(buffer, static_cast<size_t>(n)))) {
      OnLine(service, line);
    }
  }
  if (const std::string rest = service.lines.Rest(); !rest.empty()) OnLine(service, rest);
}

void Supervisor::OnLine(Service& service, const std::string& line) {
  if (line.empty()) return;
  console_.Forward(kServiceNames[service.index], line);
  service.last_lines.push_back(line);
  if (service.last_lines.size() > kLastLines) service.last_lines.pop_front();
}

void Supervisor::ReapAndRestart() {
  for (Service& service : services_) {
    if (const auto status = service.child.Reap()) {
      ReadOutput(service);
      service.output_is_open = false;
      OnDeath(service, *status);
    }
    if (!is_stopping_ && service.restart_at && Clock::now() >= *service.restart_at) {
      StartDue(service);
    }
  }
}

void Supervisor::OnDeath(Service& service, int wait_status) {
  service.watchdog->Pause();
  const std::string name = kServiceNames[service.index];
  const std::string how = service.hang_reason.empty() ? DescribeWaitStatus(wait_status)
                                                      : absl::StrCat("hung: ", service.hang_reason);
  if (is_stopping_) {
    console_.Event(LogLevel::kInfo, "stopped", {{"child", name}, {"how", how}});
    return;
  }
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == kUserMustChange) {
    return BeginStop(kUserMustChange, absl::StrCat(name, ": ", LastWords(service)));
  }
  const auto delay = service.policy.OnDeath(Clock::now());
  if (!delay) {
    return BeginStop(
        1, absl::StrCat(name, " ended ", RestartPolicy::kMaxRestarts + 1, " times within ",
                        RestartPolicy::kWindow.count(), " s, the last time with ", how,
                        "; giving up. Its last words: ", LastWords(service)));
  }
  console_.Event(LogLevel::kWarning, "service ended, starting it again",
                 {{"child", name}, {"how", how}, {"delay_ms", delay->count()}});
  service.restart_at = Clock::now() + *delay;
}

void Supervisor::StartDue(Service& service) {
  service.restart_at.reset();
  if (const absl::Status status = Start(service); !status.ok()) {
    BeginStop(1, std::string(status.message()));
  }
}

// The line that says what the user must do: the last one, its message where it is a log line.
std::string Supervisor::LastWords(const Service& service) const {
  if (service.last_lines.empty()) return "(it said nothing)";
  // "hearth-gpu-worker: ...": who says it is known.
  const std::string line(absl::StripPrefix(
      service.last_lines.back(), absl::StrCat("hearth-", kServiceNames[service.index], ": ")));
  const auto value = ParseJson(line);
  if (value.ok() && value->is_object()) {
    const json::value* message = value->get_object().if_contains("message");
    if (message != nullptr && message->is_string()) {
      return std::string(message->get_string().data(), message->get_string().size());
    }
  }
  return line;
}

void Supervisor::BeginStop(int exit_code, const std::string& reason) {
  if (is_stopping_) return;
  is_stopping_ = true;
  exit_code_ = exit_code;
  reason_ = reason;
  for (Service& service : services_) {
    service.watchdog->Pause();
    service.restart_at.reset();
  }
  ContinueStop();
}

// Gateway, then worker, then store: each is asked when the one before is gone, and killed when it
// takes longer than its grace time.
void Supervisor::ContinueStop() {
  for (; stop_index_ >= 0; --stop_index_) {
    Service& service = services_[stop_index_];
    if (!service.child.is_running()) continue;
    if (!service.was_asked_to_stop) {
      service.was_asked_to_stop = true;
      service.child.Signal(SIGTERM);
      stop_deadline_ = Clock::now() + options_.grace + kStopSlack;
    } else if (Clock::now() >= stop_deadline_) {
      console_.Event(LogLevel::kWarning, "did not stop in time, killing it",
                     {{"child", kServiceNames[stop_index_]}});
      service.child.Signal(SIGKILL);
      stop_deadline_ = Clock::now() + kStopSlack;
    }
    return;
  }
}

bool Supervisor::AllStopped() const {
  return is_stopping_ && std::none_of(services_.begin(), services_.end(),
                                      [](const Service& s) { return s.child.is_running(); });
}

}  // namespace hearth::cli
