// A gRPC server on a Unix socket of the run directory, with this project's limits.
#pragma once

#include <grpcpp/server.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace hearth {

struct RpcServerOptions {
  std::string address;  // "unix:/run/dir/worker.sock", or "host:port" (a warning is logged: no
                        // authentication)
  int max_message_bytes = 32 << 20;
  int max_concurrent_streams = 512;
};

// Owns the server and the lock file beside its socket: a second server on one socket is
// AlreadyExists with the holder's pid (gRPC itself would take the socket over silently). A stale
// socket is removed. The socket gets mode 0600.
class RpcServer {
 public:
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const RpcServerOptions& options, const std::vector<grpc::Service*>& services);
  ~RpcServer();

  grpc::Server& server() { return *server_; }
  // Refuses new calls, lets running ones finish until the deadline, then cancels them.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  RpcServer() = default;
  UniqueFd lock_;
  std::string socket_path_;
  std::unique_ptr<grpc::Server> server_;
};

// Raises the soft descriptor limit to the hard one (gRPC 1.51 never recovers from running out).
// Returns the limit.
uint64_t RaiseDescriptorLimit();

// A flock'ed file that names this process; AlreadyExists names the pid that holds it. The holder
// may remove the file.
absl::StatusOr<UniqueFd> LockFile(const std::string& path);

}  // namespace hearth
