// `hearth probe`: asks a service whether it is well, over a new connection. For container health
// checks and scripts.
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/supervisor/http_get.h"
#include "common/rpc/health.h"

namespace hearth::cli {
namespace {

struct ProbeOptions {
  std::string address;
  std::string service;
  int timeout_ms = 3000;
};

// http://HOST:PORT/PATH
absl::Status ProbeHttp(const std::string& url, std::chrono::milliseconds timeout) {
  const size_t begin = std::string("http://").size();
  const size_t slash = std::min(url.find('/', begin), url.size());
  const size_t colon = url.rfind(':', slash - 1);
  int port = 80;
  std::string host = url.substr(begin, slash - begin);
  if (colon != std::string::npos && colon >= begin) {
    host = url.substr(begin, colon - begin);
    if (!absl::SimpleAtoi(url.substr(colon + 1, slash - colon - 1), &port)) {
      return absl::InvalidArgumentError(absl::StrCat(url, ": no port number after the colon"));
    }
  }
  const auto answer =
      HttpGet(host, port, slash < url.size() ? url.substr(slash) : "/health", timeout);
  if (!answer.ok()) return answer.status();
  if (answer->status == 200) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(url, " answers ", answer->status, ": ", answer->body));
}

absl::Status RunProbe(const ProbeOptions& options) {
  const std::chrono::milliseconds timeout(options.timeout_ms);
  if (absl::StartsWith(options.address, "http://")) return ProbeHttp(options.address, timeout);
  return ProbeHealth(options.address, options.service, timeout);
}

}  // namespace

void AddProbe(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<ProbeOptions>();
  CLI::App* command =
      app.add_subcommand("probe", "Exit status 0 if a service answers that it is well");
  command
      ->add_option("address", options->address,
                   "unix:SOCKET, HOST:PORT (gRPC) or http://HOST:PORT/PATH")
      ->required();
  command->add_option("--service", options->service, "gRPC health service: \"\" or \"ready\"");
  command->add_option("--timeout-ms", options->timeout_ms, "Longest wait")
      ->check(CLI::Range(1, 600'000));
  command->callback([options, exit_code] {
    const absl::Status status = RunProbe(*options);
    if (!status.ok()) {
      std::fprintf(stderr, "hearth probe: %s\n", std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace hearth::cli
