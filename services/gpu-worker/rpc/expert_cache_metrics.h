// The expert cache in Prometheus. Without one (the CPU backend) the counts stay zero, so that
// dashboards have a number to show.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include "services/gpu-worker/experts/attached_experts.h"
#include "services/gpu-worker/experts/expert_tier.h"

namespace hearth::worker {

class ExpertCacheMetrics {
 public:
  explicit ExpertCacheMetrics(prometheus::Registry& registry);

  // Before each scrape. `tier` may be null.
  void Refresh(const ExpertTier* tier, const AttachedExperts& experts);

 private:
  void ShowLayers(const std::vector<LayerCounts>& layers);
  void ShowPolicy(const std::string& policy);

  prometheus::Family<prometheus::Counter>&hits_, &misses_, &admissions_, &evictions_, &bytes_,
      &seconds_;
  prometheus::Family<prometheus::Gauge>&slots_, &policies_, &tier_bytes_;
  prometheus::Gauge* policy_ = nullptr;  // of policies_: the one that is 1
};

}  // namespace hearth::worker
