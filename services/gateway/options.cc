#include "services/gateway/options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace hearth::gateway {
namespace {

std::filesystem::path DefaultRunDir() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/') return std::filesystem::path(runtime) / "hearth";
  return absl::StrCat("/tmp/hearth-", ::geteuid());
}

// "127.0.0.1:8080", "[::1]:8080"; an empty string when it is good, else what it must be.
std::string SplitAddress(const std::string& address, GatewayOptions* options) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::StrCat("'", address, "' must be HOST:PORT with a port of 0 to 65535");
  }
  std::string host = address.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  if (host.empty()) return absl::StrCat("'", address, "' has no host before its port");
  options->host = host;
  options->port = port;
  return "";
}

// A body becomes a message to the worker, of at most 32 MiB (common/rpc); token ids grow on the
// way.
constexpr int64_t kMostBodyBytes = int64_t{16} << 20;

// CLI::Range lets NaN pass.
std::string IsFinite(const std::string& text) {
  double number = 0;
  const bool is_finite = absl::SimpleAtod(text, &number) && std::isfinite(number);
  return is_finite ? "" : absl::StrCat("'", text, "' must be a number");
}

void AddLimits(CLI::App& app, GatewayOptions& options, double& grace, double& timeout) {
  app.add_option("--max-connections", options.max_connections, "Connections at once, at most")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--max-requests", options.max_requests, "Generations inside at once, at most")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  app.add_option("--max-body-bytes", options.max_body_bytes, "Bytes of a request's body, at most")
      ->check(CLI::Range(int64_t{1024}, kMostBodyBytes))
      ->capture_default_str();
  app.add_option("--request-timeout", timeout, "Seconds that a request may take, at most")
      ->check(IsFinite)
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str();
  app.add_option("--grace-seconds", grace, "For running requests when told to stop, at most")
      ->check(IsFinite)
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
}

}  // namespace

ParsedCommandLine ParseCommandLine(int argc, char** argv) {
  GatewayOptions options;
  options.run_dir = DefaultRunDir();
  std::string listen = "127.0.0.1:8080";
  double grace = 5, timeout = 600;
  CLI::App app("Serves the OpenAI API over HTTP and passes requests on to the GPU worker.",
               "hearth-gateway");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--run-dir", options.run_dir, "Private folder for sockets")->capture_default_str();
  app.add_option("--worker", options.worker, "gRPC address (default: unix:RUN_DIR/worker.sock)");
  app.add_option("--listen", listen, "HOST:PORT; port 0 is any free one")
      ->check([&](const std::string& text) { return SplitAddress(text, &options); })
      ->capture_default_str();
  app.add_option("--allowed-host", options.allowed_hosts,
                 "Name by which clients may call this server, besides localhost; repeatable")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option(
         "--allowed-origin", options.allowed_origins,
         "Origin of web pages that may call it (https://chat.example); repeatable; * is any")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--api-key-file", options.api_key_file,
                 "File of API keys, one a line; without it none is asked for");
  AddLimits(app, options, grace, timeout);
  const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                  {"info", LogLevel::kInfo},
                                                  {"warning", LogLevel::kWarning},
                                                  {"error", LogLevel::kError}};
  app.add_option("--log-level", options.log_level, "debug, info, warning or error")
      ->transform(CLI::CheckedTransformer(levels));
  // The reason is the last line, for those who show only that one.
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    return absl::StrCat(failed->get_name(), ": ", error.what(), " (--help lists all options)\n");
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return {std::nullopt, app.exit(error) == 0 ? 0 : 2};
  }
  options.has_max_connections = app.count("--max-connections") > 0;
  std::error_code ignored;
  options.run_dir = std::filesystem::absolute(options.run_dir, ignored);
  if (options.worker.empty()) {
    options.worker = absl::StrCat("unix:", (options.run_dir / "worker.sock").string());
  }
  options.grace = std::chrono::milliseconds(static_cast<int64_t>(grace * 1000));
  options.request_timeout = std::chrono::milliseconds(static_cast<int64_t>(timeout * 1000));
  return {options, 0};
}

}  // namespace hearth::gateway
