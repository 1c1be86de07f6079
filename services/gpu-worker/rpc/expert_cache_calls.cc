#include "services/gpu-worker/rpc/expert_cache_calls.h"

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"

namespace hearth::worker {

absl::StatusOr<ExpertTier*> FindExpertTier(const ServingState& state) {
  const ServedModel* model = state.model();
  if (model == nullptr) {
    HEARTH_RETURN_IF_ERROR(state.CheckServing());
    return absl::UnavailableError("the worker is still loading");
  }
  if (model->expert_tier != nullptr) return model->expert_tier;
  return absl::FailedPreconditionError(
      absl::StrCat("the backend '", model->info.backend(), "' has no expert cache"));
}

v1::ExpertCacheStatus ToProto(const TierStatistics& statistics) {
  const CacheStatistics& cache = statistics.cache;
  v1::ExpertCacheStatus status;
  status.set_policy(std::string(cache.policy));
  for (const std::string_view name : PolicyNames()) status.add_policies(std::string(name));
  status.set_slots_free(static_cast<uint64_t>(cache.slots_free));
  status.set_slots_loading(static_cast<uint64_t>(cache.slots_loading));
  status.set_slots_resident(static_cast<uint64_t>(cache.slots_resident));
  status.set_slot_bytes(statistics.slot_bytes);
  for (size_t i = 0; i < cache.layers.size(); ++i) {
    v1::ExpertCacheLayer* layer = status.add_layers();
    layer->set_layer(static_cast<uint32_t>(i));
    layer->set_hits(cache.layers[i].hits);
    layer->set_misses(cache.layers[i].misses);
    layer->set_admissions(cache.layers[i].admissions);
    layer->set_evictions(cache.layers[i].evictions);
  }
  status.set_pcie_bytes(statistics.work.pcie_bytes);
  status.set_zero_copy_bytes(statistics.work.in_place_bytes);
  status.set_cpu_bytes(statistics.work.cpu_bytes);
  status.set_cpu_seconds(statistics.work.cpu_seconds);
  status.set_awaited_seconds(statistics.work.awaited_seconds);
  status.set_zero_copy_share(statistics.work.zero_copy_share);
  status.set_abandoned(cache.abandoned);
  status.set_candidates_not_worth(cache.candidates_not_worth);
  status.set_candidates_dropped(cache.candidates_dropped);
  for (const TierPart& part : statistics.parts) {
    v1::TierPart* added = status.add_parts();
    added->set_tier(part.tier);
    added->set_component(part.component);
    added->set_bytes(part.bytes);
  }
  return status;
}

absl::Status ChangePolicy(ExpertTier& tier, const std::string& policy) {
  HEARTH_RETURN_IF_ERROR(tier.SetPolicy(policy));
  LogInfo("the expert cache's policy was changed", {{"policy", policy}});
  return absl::OkStatus();
}

}  // namespace hearth::worker
