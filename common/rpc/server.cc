#include "common/rpc/server.h"

#include <fcntl.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth {
namespace {

// sun_path's size on Linux, with its terminating zero.
constexpr size_t kMaxSocketPath = 108;

std::string HolderOf(int fd) {
  char text[32] = {};
  const ssize_t n = ::pread(fd, text, sizeof text - 1, 0);
  return n > 0 ? std::string(text, static_cast<size_t>(n)) : "unknown";
}

// Its last holder may have removed the file after we opened it: then others lock a new one.
bool IsStillAt(const std::string& path, int fd) {
  struct stat named {};
  struct stat opened {};
  return ::stat(path.c_str(), &named) == 0 && ::fstat(fd, &opened) == 0 &&
         named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
}

void Configure(const RpcServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(options.max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 2000);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
}

}  // namespace

uint64_t RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  ::getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}

absl::StatusOr<UniqueFd> LockFile(const std::string& path) {
  UniqueFd fd;
  do {
    fd = UniqueFd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path));
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat("lock ", path));
      return absl::AlreadyExistsError(
          absl::StrCat(path, ": held by process ", HolderOf(fd.get()),
                       "; stop it or use another run directory (--run-dir)"));
    }
  } while (!IsStillAt(path, fd.get()));
  const std::string pid = absl::StrCat(::getpid());
  if (::ftruncate(fd.get(), 0) != 0 ||
      ::pwrite(fd.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return ErrnoStatus(errno, absl::StrCat("write ", path));
  }
  return fd;
}

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const RpcServerOptions& options, const std::vector<grpc::Service*>& services) {
  auto server = std::unique_ptr<RpcServer>(new RpcServer());
  if (absl::StartsWith(options.address, "unix:")) {
    server->socket_path_ = std::string(absl::StripPrefix(options.address, "unix:"));
    const std::string& path = server->socket_path_;
    if (path.size() >= kMaxSocketPath) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": ", path.size(), " bytes are too long for a Unix socket, the limit is ",
          kMaxSocketPath - 1, "; use a shorter run directory"));
    }
    HEARTH_ASSIGN_OR_RETURN(server->lock_, LockFile(path + ".lock"));
    ::unlink(path.c_str());  // stale: we hold the lock
  } else {
    LogWarning("gRPC listens on TCP without authentication; use it only inside a private network",
               {{"address", options.address}});
  }

  grpc::ServerBuilder builder;
  Configure(options, builder);
  int bound = 0;
  // The socket is created with the process's umask: for this user only from its first moment.
  const mode_t old_mask = ::umask(0177);
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &bound);
  for (grpc::Service* service : services) builder.RegisterService(service);
  server->server_ = builder.BuildAndStart();
  ::umask(old_mask);
  if (server->server_ == nullptr || bound == 0) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on ", options.address, ": in use or not allowed"));
  }
  return server;
}

RpcServer::~RpcServer() {
  if (server_ != nullptr) Shutdown(std::chrono::milliseconds(0));
  if (lock_.valid()) ::unlink(socket_path_.c_str());
}

void RpcServer::Shutdown(std::chrono::milliseconds grace) {
  server_->Shutdown(std::chrono::system_clock::now() + grace);
}

}  // namespace hearth
