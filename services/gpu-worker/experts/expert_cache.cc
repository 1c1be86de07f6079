#include "services/gpu-worker/experts/expert_cache.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace hearth::worker {

absl::StatusOr<std::unique_ptr<ExpertCache>> ExpertCache::Create(CacheShape shape,
                                                                 std::string_view policy,
                                                                 const PolicyOptions& options) {
  HEARTH_ASSIGN_OR_RETURN(auto made, MakePolicy(policy, shape, options));
  return std::make_unique<ExpertCache>(std::move(shape), std::move(made), options.half_life_steps);
}

ExpertCache::ExpertCache(CacheShape shape, std::unique_ptr<CachePolicy> policy,
                         double half_life_steps)
    : state_{.shape = std::move(shape),
             .slot_of = {},
             .key_of = {},
             .slot_state = {},
             .free_slots = {},
             .heat = ExpertHeat(1, half_life_steps)},
      policy_(std::move(policy)) {
  const CacheShape& s = state_.shape;
  HEARTH_CHECK(s.n_layers > 0 && s.n_experts > 0 && s.n_slots >= 0 && policy_ != nullptr);
  HEARTH_CHECK(s.layer_has_experts.empty() ||
               static_cast<int>(s.layer_has_experts.size()) == s.n_layers);
  const auto n_keys = static_cast<size_t>(s.n_keys()), n_slots = static_cast<size_t>(s.n_slots);
  state_.heat = ExpertHeat(s.n_keys(), half_life_steps);
  state_.slot_of.assign(n_keys, -1);
  state_.key_of.assign(n_slots, -1);
  state_.slot_state.assign(n_slots, SlotState::kFree);
  for (int32_t slot = s.n_slots - 1; slot >= 0; --slot) state_.free_slots.push_back(slot);
  layers_.resize(static_cast<size_t>(s.n_layers));
  rows_.assign(n_keys, 0);
}

int32_t ExpertCache::CheckedKey(int layer, int expert) const {
  const CacheShape& s = state_.shape;
  HEARTH_CHECK(layer >= 0 && layer < s.n_layers && expert >= 0 && expert < s.n_experts);
  return s.Key(layer, expert);
}

int ExpertCache::SlotOf(int layer, int expert) const {
  const int32_t slot = state_.slot_of[static_cast<size_t>(CheckedKey(layer, expert))];
  if (slot < 0 || state_.slot_state[static_cast<size_t>(slot)] != SlotState::kResident) return -1;
  return slot;
}

void ExpertCache::RecordStep(std::span<const ExpertUse> uses) {
  state_.heat.Tick();
  missed_.clear();
  for (const ExpertUse& use : uses) {
    const int32_t key = CheckedKey(use.layer, use.expert);
    const auto index = static_cast<size_t>(key);
    rows_[index] += static_cast<uint64_t>(use.rows);
    state_.heat.Add(key, 1);
    const int32_t slot = state_.slot_of[index];
    const bool is_hit =
        slot >= 0 && state_.slot_state[static_cast<size_t>(slot)] == SlotState::kResident;
    LayerCounts& layer = layers_[static_cast<size_t>(use.layer)];
    ++(is_hit ? layer.hits : layer.misses);
    if (!is_hit) missed_.push_back(key);
  }
  policy_->OnStep(&state_, uses, missed_);
}

void ExpertCache::RecordPrompt(std::span<const ExpertUse> uses, int n_tokens) {
  HEARTH_CHECK(n_tokens > 0);
  for (const ExpertUse& use : uses) {
    rows_[static_cast<size_t>(CheckedKey(use.layer, use.expert))] +=
        static_cast<uint64_t>(use.rows);
  }
  policy_->OnPrompt(&state_, uses, n_tokens);
}

void ExpertCache::RecordPrediction(int layer, std::span<const int32_t> ids) {
  for (const int32_t id : ids) CheckedKey(layer, id);
  policy_->OnPrediction(&state_, layer, ids);
}

void ExpertCache::Evict(int32_t slot, Admission* admission) {
  const auto index = static_cast<size_t>(slot);
  const int32_t key = state_.key_of[index];
  HEARTH_CHECK(state_.slot_state[index] == SlotState::kResident && key >= 0);
  admission->evicted_layer = key / state_.shape.n_experts;
  admission->evicted_expert = key % state_.shape.n_experts;
  state_.slot_of[static_cast<size_t>(key)] = -1;
  ++layers_[static_cast<size_t>(admission->evicted_layer)].evictions;
  --n_resident_;
}

std::vector<Admission> ExpertCache::PlanAdmissions(int at_most) {
  choices_.clear();
  policy_->Choose(&state_, at_most, &choices_);
  HEARTH_CHECK(static_cast<int>(choices_.size()) <= std::max(at_most, 0));
  return Apply();
}

std::vector<Admission> ExpertCache::PlanFilling(std::span<const ExpertUses> profile) {
  choices_.clear();
  const CacheShape& s = state_.shape;
  std::vector<int32_t> order = KeysByCount(s, profile);
  for (int expert = 0; expert < s.n_experts; ++expert) {
    for (int layer = 0; layer < s.n_layers; ++layer) {
      if (s.HasExperts(layer)) order.push_back(s.Key(layer, expert));
    }
  }
  std::vector<char> is_chosen(static_cast<size_t>(s.n_keys()), 0);
  auto slot = state_.free_slots.rbegin();  // Apply takes them from the end
  for (const int32_t key : order) {
    if (slot == state_.free_slots.rend()) break;
    const auto index = static_cast<size_t>(key);
    if (state_.slot_of[index] >= 0 || is_chosen[index] != 0) continue;
    is_chosen[index] = 1;
    choices_.push_back({key, *slot++});
  }
  if (!choices_.empty()) policy_->OnOtherChoices();
  return Apply();
}

std::vector<Admission> ExpertCache::Apply() {
  std::vector<Admission> admissions;
  admissions.reserve(choices_.size());
  for (const CachePolicy::Choice& choice : choices_) {
    int32_t& slot_of = state_.slot_of[static_cast<size_t>(choice.key)];
    HEARTH_CHECK(slot_of == -1);
    Admission admission{.layer = choice.key / state_.shape.n_experts,
                        .expert = choice.key % state_.shape.n_experts,
                        .slot = choice.slot};
    const auto slot = static_cast<size_t>(choice.slot);
    if (state_.slot_state[slot] == SlotState::kFree) {
      auto& free_slots = state_.free_slots;  // a policy takes them from the end
      const auto found = std::find(free_slots.rbegin(), free_slots.rend(), choice.slot);
      HEARTH_CHECK(found != free_slots.rend());
      free_slots.erase(std::next(found).base());
    } else {
      Evict(choice.slot, &admission);
    }
    slot_of = choice.slot;
    state_.key_of[slot] = choice.key;
    state_.slot_state[slot] = SlotState::kLoading;
    ++n_loading_;
    admissions.push_back(admission);
  }
  return admissions;
}

void ExpertCache::Free(int32_t slot) {
  int32_t& key = state_.key_of[static_cast<size_t>(slot)];
  if (key >= 0) state_.slot_of[static_cast<size_t>(key)] = -1;
  key = -1;
  state_.slot_state[static_cast<size_t>(slot)] = SlotState::kFree;
  state_.free_slots.push_back(slot);
}

bool ExpertCache::Publish(const Admission& admission) {
  const auto slot = static_cast<size_t>(admission.slot);
  HEARTH_CHECK(state_.slot_state[slot] == SlotState::kLoading);
  if (state_.key_of[slot] < 0) {
    Abandon(admission);
    return false;
  }
  HEARTH_CHECK(state_.key_of[slot] == CheckedKey(admission.layer, admission.expert));
  state_.slot_state[slot] = SlotState::kResident;
  --n_loading_;
  ++n_resident_;
  ++layers_[static_cast<size_t>(admission.layer)].admissions;
  return true;
}

void ExpertCache::Abandon(const Admission& admission) {
  HEARTH_CHECK(state_.slot_state[static_cast<size_t>(admission.slot)] == SlotState::kLoading);
  --n_loading_;
  ++abandoned_;
  Free(admission.slot);
}

void ExpertCache::Clear() {
  for (int32_t slot = 0; slot < state_.shape.n_slots; ++slot) {
    const auto index = static_cast<size_t>(slot);
    if (state_.slot_state[index] == SlotState::kResident) Free(slot);
    int32_t& key = state_.key_of[index];
    if (key >= 0) state_.slot_of[static_cast<size_t>(key)] = -1;
    key = -1;
  }
  n_resident_ = 0;
}

absl::Status ExpertCache::SetPolicy(std::string_view name, const PolicyOptions& options) {
  HEARTH_ASSIGN_OR_RETURN(auto policy, MakePolicy(name, state_.shape, options));
  SetPolicy(std::move(policy), options.half_life_steps);
  return absl::OkStatus();
}

void ExpertCache::SetPolicy(std::unique_ptr<CachePolicy> policy, double half_life_steps) {
  HEARTH_CHECK(policy != nullptr);
  policy_ = std::move(policy);
  state_.heat.SetHalfLife(half_life_steps);
}

void ExpertCache::CopyStatistics(CacheStatistics* statistics) const {
  statistics->policy = policy_->name();
  statistics->layers = layers_;
  statistics->slots_free = static_cast<int>(state_.free_slots.size());
  statistics->slots_loading = n_loading_;
  statistics->slots_resident = n_resident_;
  statistics->abandoned = abandoned_;
  statistics->candidates_not_worth = state_.n_not_worth;
  statistics->candidates_dropped = state_.n_dropped;
}

CacheStatistics ExpertCache::Statistics() const {
  CacheStatistics statistics;
  CopyStatistics(&statistics);
  return statistics;
}

std::vector<ExpertUses> ExpertCache::TakeUses() {
  std::vector<ExpertUses> uses;
  for (int layer = 0; layer < state_.shape.n_layers; ++layer) {
    for (int expert = 0; expert < state_.shape.n_experts; ++expert) {
      uint64_t& rows = rows_[static_cast<size_t>(state_.shape.Key(layer, expert))];
      if (rows == 0) continue;
      uses.push_back({layer, expert, std::exchange(rows, 0)});
    }
  }
  return uses;
}

}  // namespace hearth::worker
