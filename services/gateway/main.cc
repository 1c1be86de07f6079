// hearth-gateway: the OpenAI API in front of a gpu-worker. One thread; knows no model file.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/logging.h"
#include "common/base/signals.h"
#include "common/base/status_macros.h"
#include "common/rpc/server.h"
#include "services/gateway/http/server.h"
#include "services/gateway/options.h"

namespace hearth::gateway {
namespace {

constexpr uint64_t kOtherDescriptors = 64;  // sockets to the worker, epoll, files, logs

// A connection needs a descriptor: better to refuse the flag than the client. Without the flag
// there are as many connections as there can be.
absl::Status FitConnections(GatewayOptions& options) {
  const uint64_t limit = RaiseDescriptorLimit();
  if (limit >= static_cast<uint64_t>(options.max_connections) + kOtherDescriptors) {
    return absl::OkStatus();
  }
  if (!options.has_max_connections && limit > kOtherDescriptors) {
    options.max_connections = static_cast<int>(limit - kOtherDescriptors);
    LogWarning("few file descriptors: fewer connections at once",
               {{"descriptors", limit}, {"max_connections", options.max_connections}});
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("--max-connections ", options.max_connections, " needs ",
                   options.max_connections + static_cast<int64_t>(kOtherDescriptors),
                   " file descriptors, this process may open ", limit,
                   "; lower the flag or raise the limit (ulimit -n)"));
}

asio::awaitable<void> Stop(Server& server, Worker& worker, asio::io_context& io,
                           std::chrono::milliseconds grace) {
  co_await ShutDown(server, worker, grace);
  io.stop();
}

// What a signal does; both on the io_context's thread.
struct StopRequest {
  std::function<void()> act;  // empty until there is something to stop
  bool is_made = false;
};

absl::Status Serve(GatewayOptions options, asio::io_context& io, StopRequest& stop) {
  HEARTH_RETURN_IF_ERROR(FitConnections(options));
  HEARTH_RETURN_IF_ERROR(MakePrivateDirectory(options.run_dir));
  HEARTH_ASSIGN_OR_RETURN(Guard guard, Guard::Create(options.allowed_hosts, options.allowed_origins,
                                                     options.api_key_file));
  Worker worker(io, options.worker);
  Services services(options, std::move(guard), worker);
  HEARTH_ASSIGN_OR_RETURN(const auto server, Server::Listen(io, services));
  const std::filesystem::path port_file = options.run_dir / "gateway.port";
  HEARTH_RETURN_IF_ERROR(WriteFileAtomically(port_file, absl::StrCat(server->port(), "\n")));
  LogInfo("serving",
          {{"host", options.host}, {"port", server->port()}, {"worker", options.worker}});
  stop.act = [&] {
    LogInfo("stopping");
    asio::co_spawn(io, Stop(*server, worker, io, options.grace), asio::detached);
  };
  if (stop.is_made) stop.act();
  worker.Start();
  server->Start();
  io.run();
  std::error_code ignored;
  std::filesystem::remove(port_file, ignored);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const ParsedCommandLine parsed = ParseCommandLine(argc, argv);
  if (!parsed.options) return parsed.exit_code;
  SetLogService("gateway");
  SetLogLevel(parsed.options->log_level);
  asio::io_context io(1);
  StopRequest stop;
  const SignalWaiter signals([&](int, int count) {
    if (count > 1) {
      std::fputs("second signal: ending at once\n", stderr);
      std::_Exit(1);
    }
    asio::post(io, [&stop] {
      stop.is_made = true;
      if (stop.act) stop.act();
    });
  });
  const absl::Status status = Serve(*parsed.options, io, stop);
  if (status.ok()) return 0;
  std::fprintf(stderr, "hearth-gateway: %s\n", std::string(status.message()).c_str());
  return 2;
}

}  // namespace
}  // namespace hearth::gateway

int main(int argc, char** argv) { return hearth::gateway::Main(argc, argv); }
