#include "cli/client/session.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/supervisor/run_dir.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPollMs = 50;
constexpr std::chrono::milliseconds kConnectTime{500};
constexpr std::chrono::seconds kStopTime{15};
constexpr size_t kKeptOutput = 8 << 10;

bool IsReady(WorkerClient& client) {
  const auto status = client.Status(kConnectTime);
  return status.ok() && status->state() == v1::WORKER_STATE_READY;
}

// Takes what the server wrote, so that it never blocks; the end is kept for error messages.
void Drain(const Child& server, std::string& kept) {
  char buffer[4096];
  ssize_t n = 0;
  while ((n = ::read(server.output(), buffer, sizeof buffer)) > 0) {
    kept.append(buffer, static_cast<size_t>(n));
  }
  if (kept.size() > kKeptOutput) kept.erase(0, kept.size() - kKeptOutput);
}

std::string LastLine(const std::string& text) {
  std::string last;
  for (const auto& line : absl::StrSplit(text, '\n', absl::SkipEmpty())) last = std::string(line);
  return last;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Session>> Session::Open(const SessionOptions& options) {
  auto session = std::unique_ptr<Session>(new Session());
  const std::filesystem::path run_dir =
      options.run_dir.empty() ? DefaultRunDir() : std::filesystem::path(options.run_dir);
  const std::string address = options.worker.empty() ? WorkerAddress(run_dir) : options.worker;
  session->client_ = std::make_unique<WorkerClient>(address);
  const auto status = session->client_->Status();
  if (status.ok()) {
    HEARTH_RETURN_IF_ERROR(session->WaitUntilReady());
    return session;
  }
  if (options.model.empty()) {
    return absl::UnavailableError(
        absl::StrCat("no cluster answers at ", address,
                     "; start one with `hearth serve --model DIR`, or name a model with --model"));
  }
  HEARTH_RETURN_IF_ERROR(session->StartPrivateCluster(options.model));
  HEARTH_RETURN_IF_ERROR(session->WaitUntilReady());
  return session;
}

absl::Status Session::StartPrivateCluster(const std::string& model) {
  std::string pattern = (std::filesystem::temp_directory_path() / "hearth-private-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) return ErrnoStatus(errno, "make a temporary folder");
  private_run_dir_ = pattern;
  std::error_code error;
  const std::string self = std::filesystem::read_symlink("/proc/self/exe", error).string();
  const ChildSpec spec{.name = "hearth serve",
                       .argv = {self, "serve", "--model", model, "--port", "0", "--run-dir",
                                private_run_dir_.string()},
                       .death_signal = SIGTERM};  // it then stops its own children in order
  HEARTH_ASSIGN_OR_RETURN(server_, Child::Start(spec));
  client_ = std::make_unique<WorkerClient>(WorkerAddress(private_run_dir_));
  return absl::OkStatus();
}

absl::Status Session::WaitUntilReady() {
  while (!IsReady(*client_)) {
    if (!private_run_dir_.empty()) {
      Drain(server_, server_output_);
      if (server_.Reap()) return absl::FailedPreconditionError(LastLine(server_output_));
    } else if (!client_->Status().ok()) {
      return absl::UnavailableError("the cluster ended before it was ready");
    }
    ::poll(nullptr, 0, kPollMs);
  }
  return absl::OkStatus();
}

Session::~Session() {
  if (private_run_dir_.empty()) return;
  client_->Disconnect();  // or the worker waits for us to go
  server_.Signal(SIGTERM);
  const auto deadline = Clock::now() + kStopTime;
  while (server_.is_running() && Clock::now() < deadline && !server_.Reap()) {
    Drain(server_, server_output_);
    ::poll(nullptr, 0, kPollMs);
  }
  std::error_code ignored;
  std::filesystem::remove_all(private_run_dir_, ignored);
}

}  // namespace hearth::cli
