// The books of the VRAM expert cache: which expert lies in which slot, what was hit and missed, and
// which copies to make next. No device is touched here: the engine copies and switches its table.
//
// One pool of equal slots for all layers. A slot is free, loading or resident; an expert is in at
// most one. Used by the engine's thread only. With S slots, U uses in a step and n admissions:
// RecordStep is O(U); PlanAdmissions is O(candidates + n log n), and O(S) once in tens of steps,
// when the coldest slots are looked for again; SlotOf, Publish and Abandon are O(1). 48 layers of
// 10 uses and 6144 slots take 4 us a step together (`hearth cache simulate locality`). Memory:
// about 26 bytes an expert and 10 a slot.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "services/gpu-worker/experts/cache_policy.h"

namespace hearth::worker {

// Copy this expert into this slot, then Publish or Abandon it.
struct Admission {
  int layer = 0;
  int expert = 0;
  int slot = 0;
  int evicted_layer = -1;  // whose slot it was: no longer resident; -1: the slot was free
  int evicted_expert = -1;
};

struct LayerCounts {
  uint64_t hits = 0, misses = 0;  // uses, whatever their rows
  uint64_t admissions = 0;        // published
  uint64_t evictions = 0;
};

struct CacheStatistics {
  std::string_view policy;
  std::vector<LayerCounts> layers;  // all layers of the model
  int slots_free = 0, slots_loading = 0, slots_resident = 0;
  uint64_t abandoned = 0;             // admissions that failed or became stale
  uint64_t candidates_not_worth = 0;  // would gain less than their copy costs
  uint64_t candidates_dropped = 0;    // beyond the number that a step allowed
};

class ExpertCache {
 public:
  // As MakePolicy.
  static absl::StatusOr<std::unique_ptr<ExpertCache>> Create(CacheShape shape,
                                                             std::string_view policy,
                                                             const PolicyOptions& options = {});
  ExpertCache(CacheShape shape, std::unique_ptr<CachePolicy> policy, double half_life_steps);

  const CacheShape& shape() const { return state_.shape; }

  // -1 unless resident: copied and published.
  int SlotOf(int layer, int expert) const;

  // Once a decode step: every expert that it used, once each. Hits and misses are judged by what is
  // resident now: call it before Publish of what the step didn't see yet.
  void RecordStep(std::span<const ExpertUse> uses);
  // Experts of `n_tokens` > 0 of a prompt, rows being tokens. Leaves recency, hits and misses
  // alone.
  void RecordPrompt(std::span<const ExpertUse> uses, int n_tokens);
  // The next layer's router on an earlier hidden state chose these.
  void RecordPrediction(int layer, std::span<const int32_t> ids);

  // Up to `at_most` copies to make, the most valuable first. What they evict is no longer resident
  // from now on, and their slots are loading.
  std::vector<Admission> PlanAdmissions(int at_most);
  // Copies for every slot that is free, whatever the policy: experts that are nowhere, by falling
  // count of an earlier use (counts of what the model doesn't have are left out), then in turn from
  // all layers. For the start, after the policy's own choice: an empty slot helps nobody.
  std::vector<Admission> PlanFilling(std::span<const ExpertUses> profile = {});
  // The copy has ended: resident. False if Clear came in between: the slot is free then.
  bool Publish(const Admission& admission);
  // The copy failed: the slot is free.
  void Abandon(const Admission& admission);

  // The segment was replaced: nothing is resident. Slots that are loading stay so until their
  // Publish or Abandon, because a copy may still be writing there.
  void Clear();

  // Asked from the next PlanAdmissions on; what was counted and what is resident stays. As
  // MakePolicy: an error changes nothing.
  absl::Status SetPolicy(std::string_view name, const PolicyOptions& options);
  void SetPolicy(std::unique_ptr<CachePolicy> policy, double half_life_steps);
  std::string_view policy_name() const { return policy_->name(); }

  CacheStatistics Statistics() const;
  void CopyStatistics(CacheStatistics* statistics) const;  // allocates nothing the second time
  // For the store's profile: rows of every expert since the last call, of steps and prompts.
  std::vector<ExpertUses> TakeUses();

 private:
  int32_t CheckedKey(int layer, int expert) const;
  std::vector<Admission> Apply();  // choices_
  void Evict(int32_t slot, Admission* admission);
  void Free(int32_t slot);

  CacheState state_;
  std::unique_ptr<CachePolicy> policy_;
  std::vector<LayerCounts> layers_;
  std::vector<uint64_t> rows_;   // [key], since TakeUses
  std::vector<int32_t> missed_;  // of the step
  std::vector<CachePolicy::Choice> choices_;
  int n_loading_ = 0, n_resident_ = 0;
  uint64_t abandoned_ = 0;
};

}  // namespace hearth::worker
