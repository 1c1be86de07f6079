#include "services/expert-store/rpc/store_metrics.h"

#include "common/metrics/metrics.h"

namespace hearth::store {
namespace {

// Counters only grow: adds what is new since the last scrape.
void CountUpTo(prometheus::Counter& counter, uint64_t total) {
  const double missing = static_cast<double>(total) - counter.Value();
  if (missing > 0) counter.Increment(missing);
}

prometheus::Gauge& ExpertsIn(prometheus::Registry& registry, const char* state) {
  return AddGauge(registry, "hearth_expert_store_experts",
                  "Experts of the segment, by the state of their entry", {{"state", state}});
}

}  // namespace

StoreMetrics::StoreMetrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      ready_(ExpertsIn(*registry_, "ready")),
      loading_(ExpertsIn(*registry_, "loading")),
      damaged_(ExpertsIn(*registry_, "damaged")),
      absent_(ExpertsIn(*registry_, "absent")),
      quarantined_(AddGauge(*registry_, "hearth_expert_store_quarantined_experts",
                            "Experts found damaged and not reloaded yet")),
      tier_bytes_(AddGauge(*registry_, "hearth_tier_bytes", "Bytes that a tier holds",
                           {{"tier", "ram"}, {"component", "experts"}})),
      huge_page_bytes_(AddGauge(*registry_, "hearth_expert_store_huge_page_bytes",
                                "Bytes of the segment that lie in huge pages (0 until it was "
                                "written or read as a whole)")),
      load_seconds_(AddGauge(*registry_, "hearth_expert_store_load_seconds",
                             "Seconds from the start until the experts were ready (so far, while "
                             "loading)")),
      load_bytes_(AddGauge(*registry_, "hearth_expert_store_loaded_bytes",
                           "Bytes of experts that are published")),
      is_ready_(
          AddGauge(*registry_, "hearth_expert_store_ready", "1 when workers can attach, else 0")),
      adoptions_(AddCounter(*registry_, "hearth_expert_store_adoptions_total",
                            "Segments of an earlier process taken over whole")),
      verified_(AddCounter(*registry_, "hearth_expert_store_verified_experts_total",
                           "Checksums of experts in memory that held")),
      checksum_failures_(AddCounter(*registry_, "hearth_expert_store_checksum_failures_total",
                                    "Checksums of experts in memory that did not hold")),
      attaches_(AddCounter(*registry_, "hearth_expert_store_attaches_total",
                           "Workers that were told where the segment is")),
      usage_reports_(AddCounter(*registry_, "hearth_expert_store_usage_reports_total",
                                "Reports of expert use that were added to the profile")) {}

void StoreMetrics::Refresh(const StoreStatus& status, const StoreService& service) {
  ready_.Set(static_cast<double>(status.states.ready));
  loading_.Set(static_cast<double>(status.states.loading));
  damaged_.Set(static_cast<double>(status.states.damaged));
  absent_.Set(static_cast<double>(status.states.absent));
  quarantined_.Set(static_cast<double>(status.n_quarantined));
  tier_bytes_.Set(static_cast<double>(status.segment_bytes));
  huge_page_bytes_.Set(static_cast<double>(status.huge_page_bytes));
  load_seconds_.Set(status.seconds);
  load_bytes_.Set(static_cast<double>(status.progress.bytes_done));
  is_ready_.Set(status.phase == StorePhase::kReady ? 1 : 0);
  CountUpTo(adoptions_, status.is_adopted ? 1 : 0);
  CountUpTo(verified_, status.n_verified);
  CountUpTo(checksum_failures_, status.n_checksum_failures);
  CountUpTo(attaches_, service.n_attached());
  CountUpTo(usage_reports_, service.n_usage_reports());
}

}  // namespace hearth::store
