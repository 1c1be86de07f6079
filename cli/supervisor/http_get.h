// One HTTP/1.1 GET over a new TCP connection, for probes of the gateway.
#pragma once

#include <chrono>
#include <string>

#include "absl/status/statusor.h"

namespace hearth::cli {

struct HttpAnswer {
  int status = 0;
  std::string body;  // at most 64 KiB
};

// `host` is a numeric address or a name; the Host header names the loopback address.
// DeadlineExceeded when the whole answer is not there in time, Unavailable when the connection
// fails.
absl::StatusOr<HttpAnswer> HttpGet(const std::string& host, int port, const std::string& path,
                                   std::chrono::milliseconds timeout);

}  // namespace hearth::cli
