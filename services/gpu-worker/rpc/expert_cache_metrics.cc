#include "services/gpu-worker/rpc/expert_cache_metrics.h"

#include <numeric>
#include <string>
#include <vector>

namespace hearth::worker {
namespace {

prometheus::Family<prometheus::Counter>& Counters(prometheus::Registry& registry,
                                                  const std::string& name,
                                                  const std::string& help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

prometheus::Family<prometheus::Gauge>& Gauges(prometheus::Registry& registry,
                                              const std::string& name, const std::string& help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

void RaiseTo(prometheus::Counter& counter, double value) {
  counter.Increment(value - counter.Value());
}
void RaiseTo(prometheus::Counter& counter, uint64_t value) {
  RaiseTo(counter, static_cast<double>(value));
}

// What the CPU read where nothing is cached: each use is of an expert of the mean size.
uint64_t BytesOfUses(const AttachedExperts& experts) {
  const std::vector<uint64_t> uses = experts.UsesByLayer();
  const uint64_t n_uses = std::accumulate(uses.begin(), uses.end(), uint64_t{0});
  return n_uses * experts.mean_expert_bytes();
}

}  // namespace

ExpertCacheMetrics::ExpertCacheMetrics(prometheus::Registry& registry)
    : hits_(Counters(registry, "hearth_expert_cache_hits_total",
                     "Uses of experts that were in the GPU's memory")),
      misses_(Counters(registry, "hearth_expert_cache_misses_total",
                       "Uses of experts that were not in the GPU's memory")),
      admissions_(Counters(registry, "hearth_expert_cache_admissions_total",
                           "Experts copied into the GPU's memory")),
      evictions_(Counters(registry, "hearth_expert_cache_evictions_total",
                          "Experts that gave up their slot")),
      bytes_(
          Counters(registry, "hearth_expert_bytes_total",
                   "Bytes of experts copied to the GPU (pcie), read by it in RAM (zero_copy) and "
                   "computed from RAM (cpu)")),
      seconds_(Counters(registry, "hearth_expert_cpu_seconds_total",
                        "Time in which the CPU computed experts for the GPU, and in which the GPU "
                        "waited for it in decode steps")),
      slots_(Gauges(registry, "hearth_expert_cache_slots", "Slots of the expert cache")),
      policies_(Gauges(registry, "hearth_expert_cache_policy", "1 for the policy in force")),
      tier_bytes_(Gauges(registry, "hearth_tier_bytes", "Bytes that a tier holds")) {}

void ExpertCacheMetrics::ShowLayers(const std::vector<LayerCounts>& layers) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const prometheus::Labels layer = {{"layer", std::to_string(i)}};
    RaiseTo(hits_.Add(layer), layers[i].hits);
    RaiseTo(misses_.Add(layer), layers[i].misses);
    RaiseTo(admissions_.Add(layer), layers[i].admissions);
    RaiseTo(evictions_.Add(layer), layers[i].evictions);
  }
}

void ExpertCacheMetrics::ShowPolicy(const std::string& policy) {
  if (policy_ != nullptr) policy_->Set(0);
  policy_ = &policies_.Add({{"policy", policy}});
  policy_->Set(1);
}

void ExpertCacheMetrics::Refresh(const ExpertTier* tier, const AttachedExperts& experts) {
  TierStatistics statistics;
  if (tier != nullptr) {
    statistics = tier->Statistics();
  } else {
    statistics.cache.policy = "none";
    statistics.cache.layers.resize(experts.UsesByLayer().size());
    statistics.work.cpu_bytes = BytesOfUses(experts);
  }
  const CacheStatistics& cache = statistics.cache;
  ShowLayers(cache.layers);
  ShowPolicy(std::string(cache.policy));
  RaiseTo(bytes_.Add({{"path", "pcie"}}), statistics.work.pcie_bytes);
  RaiseTo(bytes_.Add({{"path", "zero_copy"}}), statistics.work.in_place_bytes);
  RaiseTo(bytes_.Add({{"path", "cpu"}}), statistics.work.cpu_bytes);
  RaiseTo(seconds_.Add({{"kind", "computed"}}), statistics.work.cpu_seconds);
  RaiseTo(seconds_.Add({{"kind", "awaited"}}), statistics.work.awaited_seconds);
  slots_.Add({{"state", "free"}}).Set(cache.slots_free);
  slots_.Add({{"state", "loading"}}).Set(cache.slots_loading);
  slots_.Add({{"state", "resident"}}).Set(cache.slots_resident);
  for (const TierPart& part : statistics.parts) {
    tier_bytes_.Add({{"tier", part.tier}, {"component", part.component}})
        .Set(static_cast<double>(part.bytes));
  }
}

}  // namespace hearth::worker
