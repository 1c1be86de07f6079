#include "services/gpu-worker/experts/expert_tier.h"

#include <utility>

#include "common/base/status_macros.h"

namespace hearth::worker {

TierBoard::TierBoard(CacheShape shape, PolicyOptions options, uint64_t slot_bytes,
                     std::vector<TierPart> parts)
    : shape_(std::move(shape)), options_(std::move(options)) {
  shown_.slot_bytes = slot_bytes;
  shown_.parts = std::move(parts);
  shown_.cache.layers.resize(static_cast<size_t>(shape_.n_layers));
  shown_.cache.slots_free = shape_.n_slots;
}

TierStatistics TierBoard::Statistics() const {
  const std::lock_guard lock(mutex_);
  return shown_;
}

absl::Status TierBoard::SetPolicy(std::string_view name) {
  const std::lock_guard lock(mutex_);
  HEARTH_ASSIGN_OR_RETURN(asked_for_, MakePolicy(name, shape_, options_));
  awaits_profile_ = false;
  return absl::OkStatus();
}

void TierBoard::SetProfile(std::vector<ExpertUses> profile) {
  const std::lock_guard lock(mutex_);
  options_.profile = std::move(profile);
  if (!awaits_profile_ || options_.profile.empty()) return;
  auto made = MakePolicy("profile", shape_, options_);
  if (!made.ok()) return;
  asked_for_ = *std::move(made);
  awaits_profile_ = false;
}

void TierBoard::AwaitProfile() {
  const std::lock_guard lock(mutex_);
  awaits_profile_ = true;
}

std::vector<ExpertUses> TierBoard::profile() const {
  const std::lock_guard lock(mutex_);
  return options_.profile;
}

std::vector<ExpertUses> TierBoard::TakeUses() {
  const std::lock_guard lock(mutex_);
  wants_uses_ = true;
  return std::exchange(uses_, {});
}

void TierBoard::Sync(ExpertCache* cache, const TierWork& work) {
  const std::lock_guard lock(mutex_);
  if (asked_for_ != nullptr) cache->SetPolicy(std::move(asked_for_), options_.half_life_steps);
  cache->CopyStatistics(&shown_.cache);
  shown_.work = work;
  if (!wants_uses_) return;
  wants_uses_ = false;
  uses_ = cache->TakeUses();
}

}  // namespace hearth::worker
