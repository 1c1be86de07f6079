// Prometheus metrics of a service and the small HTTP server that exposes them where they have no
// HTTP of their own.
//
// Families are made once, at start, and kept in a struct of the service; prometheus-cpp's counters,
// gauges and histograms are thread-safe. Names: prefix hearth_, units in the name, as listed in
// docs/metrics.md.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace hearth {

using MetricLabels = std::map<std::string, std::string>;

// The text exposition of a registry (format 0.0.4), plus process metrics
// (process_resident_memory_bytes, process_open_fds, process_start_time_seconds,
// process_cpu_seconds_total).
std::string RenderMetrics(prometheus::Registry& registry);

// Shorthands: one family of one metric.
prometheus::Counter& AddCounter(prometheus::Registry& registry, const std::string& name,
                                const std::string& help, const MetricLabels& labels = {});
prometheus::Gauge& AddGauge(prometheus::Registry& registry, const std::string& name,
                            const std::string& help, const MetricLabels& labels = {});
prometheus::Histogram& AddHistogram(prometheus::Registry& registry, const std::string& name,
                                    const std::string& help,
                                    const prometheus::Histogram::BucketBoundaries& buckets,
                                    const MetricLabels& labels = {});

// Serves GET /metrics and GET /health (200 "ok") on "host:port" (port 0: any) with one thread, at
// most 16 connections, 5 s a request. For Prometheus; off unless configured.
class MetricsServer {
 public:
  // `before_scrape` refreshes gauges; may be null.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      const std::string& address, std::shared_ptr<prometheus::Registry> registry,
      std::function<void()> before_scrape);
  ~MetricsServer();
  int port() const;

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
