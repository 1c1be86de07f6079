// Flags of hearth-gateway.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/base/logging.h"

namespace hearth::gateway {

// No flags: only tests have other ones.
struct HttpTimes {
  std::chrono::milliseconds idle{60'000};    // of a connection between requests
  std::chrono::milliseconds header{10'000};  // for a whole header
  std::chrono::milliseconds body{30'000};    // for a body, besides a second for each KiB
  std::chrono::milliseconds write{30'000};   // for a client to take what is sent
  std::chrono::milliseconds quiet{15'000};   // of a stream, then a comment keeps it open
};

struct GatewayOptions {
  std::filesystem::path run_dir = {};
  std::string worker = {};                        // gRPC address of the gpu-worker
  std::string host = "127.0.0.1";                 // to listen on
  int port = 8080;                                // 0: any free one
  std::vector<std::string> allowed_hosts = {};    // besides loopback names and IP addresses
  std::vector<std::string> allowed_origins = {};  // of web pages elsewhere; "*": any
  std::filesystem::path api_key_file = {};        // empty: no keys
  int max_connections = 1024;
  bool has_max_connections = false;  // the flag was given: it is refused rather than lowered
  int max_requests = 256;            // generations inside at once
  int64_t max_body_bytes = int64_t{16} << 20;     // of one request
  int64_t max_bodies_bytes = int64_t{128} << 20;  // of all requests that are being read or served
  std::chrono::milliseconds request_timeout{600'000};
  std::chrono::milliseconds grace{5000};
  HttpTimes times = {};
  LogLevel log_level = LogLevel::kInfo;
};

struct ParsedCommandLine {
  std::optional<GatewayOptions> options;
  int exit_code = 0;  // without options: what to exit with (0 after --help)
};

// Prints help and errors itself.
ParsedCommandLine ParseCommandLine(int argc, char** argv);

}  // namespace hearth::gateway
