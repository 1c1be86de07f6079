// Stands in for the three services in tests of the supervisor, and runs the supervisor over them.
//
//   fake_cluster supervise RUN BIN PORT   supervisor with short limits; BIN holds links to this
//   program BIN/hearth-gpu-worker ...             a service: answers health probes, ends at SIGTERM
//
// A service does what the file RUN/<name>.does says when it starts: "crash" (exit 1 with a
// message), "refuse" (exit 2 with a message), "deaf" (runs, but never answers). It adds its name to
// RUN/stopped when it is asked to stop.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/supervisor/run_dir.h"
#include "cli/supervisor/supervisor.h"
#include "common/base/file.h"
#include "common/metrics/metrics.h"
#include "common/rpc/health.h"
#include "common/rpc/server.h"

namespace {

using namespace hearth;

std::string Flag(const std::vector<std::string>& arguments, const std::string& name) {
  for (size_t i = 0; i + 1 < arguments.size(); ++i) {
    if (arguments[i] == name) return arguments[i + 1];
  }
  return "";
}

int Supervise(const std::vector<std::string>& arguments) {
  cli::ClusterOptions options;
  options.model = "/none";
  options.run_dir = arguments[2];
  options.segment = options.run_dir / "segment";
  options.bin_dir = arguments[3];
  options.port = std::stoi(arguments[4]);
  options.grace = std::chrono::seconds(1);
  options.hang_limits = {.silence = std::chrono::milliseconds(1000),
                         .min_failures = 2,
                         .start = std::chrono::milliseconds(3000),
                         .interval = std::chrono::milliseconds(200),
                         .timeout = std::chrono::milliseconds(400)};
  auto lock = cli::LockRunDir(options.run_dir);
  if (!lock.ok()) {
    std::fprintf(stderr, "%s\n", std::string(lock.status().message()).c_str());
    return 2;
  }
  return cli::Supervisor(options, *std::move(lock)).Run();
}

void WaitForSigterm() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  int number = 0;
  ::sigwait(&set, &number);
}

int Serve(const std::string& name, const std::vector<std::string>& arguments) {
  const std::filesystem::path run_dir = Flag(arguments, "--run-dir");
  const std::string does = ReadFile(run_dir / absl::StrCat(name, ".does"), 64).value_or("");
  std::ofstream(run_dir / absl::StrCat(name, ".pid")) << ::getpid();
  if (does == "crash" || does == "refuse") {
    std::fprintf(stderr, "%s: a made-up reason\n", name.c_str());
    return does == "refuse" ? 2 : 1;
  }
  std::unique_ptr<MetricsServer> http;
  std::unique_ptr<RpcServer> rpc;
  const auto registry = std::make_shared<prometheus::Registry>();
  HealthService health([](std::string_view) { return HealthService::Answer::kServing; });
  if (does == "deaf") {
    // answers nothing
  } else if (name == "hearth-gateway") {
    auto server = MetricsServer::Start(Flag(arguments, "--listen"), registry, nullptr);
    if (!server.ok()) return 1;
    http = *std::move(server);
    std::ofstream(run_dir / "gateway.port") << http->port();
  } else {
    const char* socket = name == "hearth-gpu-worker" ? "worker.sock" : "store.sock";
    auto server = RpcServer::Start({.address = absl::StrCat("unix:", (run_dir / socket).string())},
                                   {&health});
    if (!server.ok()) return 1;
    rpc = *std::move(server);
  }
  std::fprintf(stderr, "{\"service\":\"%s\",\"message\":\"serving\"}\n", name.c_str());
  WaitForSigterm();
  std::ofstream(run_dir / "stopped", std::ios::app) << name << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv, argv + argc);
  if (argc == 5 && arguments[1] == "supervise") return Supervise(arguments);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return Serve(std::filesystem::path(arguments[0]).filename().string(), arguments);
}
