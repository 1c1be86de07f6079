#include "services/gateway/metrics.h"

#include "absl/strings/ascii.h"

namespace hearth::gateway {
namespace {

const prometheus::Histogram::BucketBoundaries kSeconds = {
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};

prometheus::Family<prometheus::Counter>& Counters(prometheus::Registry& registry, const char* name,
                                                  const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

}  // namespace

GatewayMetrics::GatewayMetrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      open_connections_(AddGauge(*registry_, "hearth_gateway_open_connections",
                                 "HTTP connections that are open")),
      streams_open_(AddGauge(*registry_, "hearth_gateway_streams_open",
                             "Answers that are being streamed to clients")),
      client_disconnects_(AddCounter(*registry_, "hearth_gateway_client_disconnects_total",
                                     "Clients that left before their answer was complete")),
      requests_(Counters(*registry_, "hearth_gateway_http_requests_total", "HTTP requests")),
      rejected_(Counters(*registry_, "hearth_gateway_rejected_total",
                         "Requests refused for a limit of the server")),
      upstream_errors_(Counters(*registry_, "hearth_gateway_upstream_errors_total",
                                "Calls to the worker that failed")),
      durations_(prometheus::BuildHistogram()
                     .Name("hearth_gateway_http_request_duration_seconds")
                     .Help("From a request's first byte to its answer's last")
                     .Register(*registry_)) {
  // Dashboards divide by these: they must exist before the first event.
  for (const char* reason : {"connections", "requests", "bodies", "queue"}) {
    rejected_.Add({{"reason", reason}});
  }
  for (const char* code : {"unavailable", "resource_exhausted", "deadline_exceeded", "internal"}) {
    upstream_errors_.Add({{"code", code}});
  }
}

void GatewayMetrics::Request(std::string_view path, std::string_view method, int code,
                             std::chrono::steady_clock::duration duration) {
  const std::string path_label(path);
  requests_
      .Add({{"path", path_label}, {"method", std::string(method)}, {"code", std::to_string(code)}})
      .Increment();
  durations_.Add({{"path", path_label}}, kSeconds)
      .Observe(std::chrono::duration<double>(duration).count());
}

void GatewayMetrics::Rejected(std::string_view reason) {
  rejected_.Add({{"reason", std::string(reason)}}).Increment();
}

void GatewayMetrics::UpstreamError(absl::StatusCode code) {
  const std::string name = absl::AsciiStrToLower(absl::StatusCodeToString(code));
  upstream_errors_.Add({{"code", name}}).Increment();
}

}  // namespace hearth::gateway
