// The store's Prometheus metrics, refreshed from its status at each scrape. docs/metrics.md lists
// them.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <cstdint>
#include <memory>

#include "services/expert-store/rpc/store_service.h"
#include "services/expert-store/segment/expert_store.h"

namespace hearth::store {

class StoreMetrics {
 public:
  StoreMetrics();
  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }
  // Called by one thread at a time: the metrics server's.
  void Refresh(const StoreStatus& status, const StoreService& service);

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Gauge &ready_, &loading_, &damaged_, &absent_, &quarantined_;
  prometheus::Gauge &tier_bytes_, &huge_page_bytes_, &load_seconds_, &load_bytes_, &is_ready_;
  prometheus::Counter &adoptions_, &verified_, &checksum_failures_, &attaches_, &usage_reports_;
};

}  // namespace hearth::store
