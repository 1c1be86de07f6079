#include "cli/supervisor/run_dir.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/rpc/server.h"

namespace hearth::cli {
namespace {

// Children whose supervisor was killed are killed by the kernel; tearing down a big mapping takes
// time.
constexpr std::chrono::seconds kWaitForOrphans{10};

std::string PortFile(const std::filesystem::path& run_dir) {
  return (run_dir / "gateway.port").string();
}

bool HolderIsAlive(const std::string& lock_path) {
  const auto text = ReadFile(lock_path, 64);
  int pid = 0;
  if (!text.ok() || !absl::SimpleAtoi(*text, &pid) || pid <= 0)
    return true;  // don't know: believe it
  return ::kill(pid, 0) == 0 || errno == EPERM;
}

}  // namespace

std::filesystem::path DefaultRunDir() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime != '\0') return std::filesystem::path(runtime) / "hearth";
  return absl::StrCat("/tmp/hearth-", ::geteuid());
}

std::string StoreAddress(const std::filesystem::path& run_dir) {
  return absl::StrCat("unix:", (run_dir / "store.sock").string());
}

std::string WorkerAddress(const std::filesystem::path& run_dir) {
  return absl::StrCat("unix:", (run_dir / "worker.sock").string());
}

std::optional<int> ReadGatewayPort(const std::filesystem::path& run_dir) {
  const auto text = ReadFile(PortFile(run_dir), 64);
  int port = 0;
  if (!text.ok() || !absl::SimpleAtoi(*text, &port) || port <= 0 || port > 65535) {
    return std::nullopt;
  }
  return port;
}

void ForgetGatewayPort(const std::filesystem::path& run_dir) {
  ::unlink(PortFile(run_dir).c_str());
}

absl::StatusOr<UniqueFd> LockRunDir(const std::filesystem::path& run_dir) {
  HEARTH_RETURN_IF_ERROR(Annotate(MakePrivateDirectory(run_dir),
                                  "this run directory can't be used, choose one with --run-dir"));
  const std::string path = (run_dir / "hearth.lock").string();
  const auto deadline = std::chrono::steady_clock::now() + kWaitForOrphans;
  while (true) {
    auto lock = LockFile(path);
    if (lock.ok() || lock.status().code() != absl::StatusCode::kAlreadyExists) return lock;
    if (HolderIsAlive(path) || std::chrono::steady_clock::now() > deadline) return lock;
    ::poll(nullptr, 0, 20);  // the children of a dead supervisor still hold it; they are ending
  }
}

absl::Status CheckPortIsFree(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int e = ::getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
      e != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--host ", host, ": ", ::gai_strerror(e),
                                                   "; give an address of this machine"));
  }
  const UniqueFd fd(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int one = 1;  // as the gateway does: closed connections of an earlier run don't matter
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  int error_number = 0;
  if (::bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0 || ::listen(fd.get(), 1) != 0) {
    error_number = errno;
  }
  ::freeaddrinfo(found);
  if (error_number == 0) return absl::OkStatus();
  if (error_number == EADDRINUSE) {
    return absl::AlreadyExistsError(
        absl::StrCat("port ", port, " of ", host,
                     " is in use by another program; stop it or choose another with --port"));
  }
  return Annotate(ErrnoStatus(error_number, absl::StrCat("listen on ", host, ":", port)),
                  "choose an address of this machine with --host and a port that you may use with "
                  "--port");
}

}  // namespace hearth::cli
