// Metrics of the gateway; docs/metrics.md lists them.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>

#include "absl/status/status.h"
#include "common/metrics/metrics.h"

namespace hearth::gateway {

// Not thread-safe: used on the gateway's one thread.
class GatewayMetrics {
 public:
  GatewayMetrics();

  // `path` is a route's pattern, never a client's text.
  void Request(std::string_view path, std::string_view method, int code,
               std::chrono::steady_clock::duration duration);
  void Rejected(std::string_view reason);
  void UpstreamError(absl::StatusCode code);

  prometheus::Gauge& open_connections() { return open_connections_; }
  prometheus::Gauge& streams_open() { return streams_open_; }
  prometheus::Counter& client_disconnects() { return client_disconnects_; }

  std::string Render() { return RenderMetrics(*registry_); }

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Gauge& open_connections_;
  prometheus::Gauge& streams_open_;
  prometheus::Counter& client_disconnects_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Counter>& rejected_;
  prometheus::Family<prometheus::Counter>& upstream_errors_;
  prometheus::Family<prometheus::Histogram>& durations_;
};

}  // namespace hearth::gateway
