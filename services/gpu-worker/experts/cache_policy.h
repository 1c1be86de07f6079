// Which experts deserve a slot of the VRAM cache: one interface, a file for each policy. The cache
// (expert_cache.h) keeps the books and calls its policy; a policy sees them and chooses.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/gpu-worker/experts/attached_experts.h"
#include "services/gpu-worker/experts/expert_heat.h"

namespace hearth::worker {

struct CacheShape {
  int n_layers = 0;
  int n_experts = 0;                         // a layer
  int n_slots = 0;                           // of all layers together
  std::vector<bool> layer_has_experts = {};  // one a layer; empty: all have

  int n_keys() const { return n_layers * n_experts; }
  int32_t Key(int layer, int expert) const { return layer * n_experts + expert; }
  bool HasExperts(int layer) const {
    return layer_has_experts.empty() || layer_has_experts[static_cast<size_t>(layer)];
  }
};

// An expert in a step, with the number of its rows (tokens).
struct ExpertUse {
  int32_t layer = 0;
  int32_t expert = 0;
  int32_t rows = 1;
};

enum class SlotState : uint8_t { kFree, kLoading, kResident };

// The cache's books. A key is in at most one slot, and a slot that isn't free has a key, unless it
// is loading what has become stale.
struct CacheState {
  CacheShape shape;
  std::vector<int32_t> slot_of;       // [key]: where it is or is being loaded; -1: nowhere
  std::vector<int32_t> key_of;        // [slot]; -1: free or stale
  std::vector<SlotState> slot_state;  // [slot]
  std::vector<int32_t> free_slots;    // in no order
  ExpertHeat heat;                    // of decode steps; a use counts 1 whatever its rows

  // Candidates that the last choices left out: not worth their copy, or beyond the allowed number.
  uint64_t n_not_worth = 0, n_dropped = 0;
};

// The keys that have a count, each once, by falling count, ties by lower key. Counts of experts
// that the model doesn't have are left out.
std::vector<int32_t> KeysByCount(const CacheShape& shape, std::span<const ExpertUses> profile);

class CachePolicy {
 public:
  struct Choice {
    int32_t key = 0;   // is nowhere
    int32_t slot = 0;  // free, or resident: its expert is evicted
  };

  virtual ~CachePolicy() = default;
  virtual std::string_view name() const = 0;

  // A step ended, and state->heat has its uses. `missed`: keys that were used but not resident.
  virtual void OnStep(CacheState* /*state*/, std::span<const ExpertUse> /*uses*/,
                      std::span<const int32_t> /*missed*/) {}
  // `n_tokens` of a prompt were read.
  virtual void OnPrompt(CacheState* /*state*/, std::span<const ExpertUse> /*uses*/,
                        int /*n_tokens*/) {}
  // The next layer's router, asked early, would choose these.
  virtual void OnPrediction(CacheState* /*state*/, int /*layer*/,
                            std::span<const int32_t> /*ids*/) {}

  // Slots are given without this policy's choice.
  virtual void OnOtherChoices() {}

  // Appends at most `at_most` choices, what is expected to gain most first; no slot and no key
  // twice.
  virtual void Choose(CacheState* state, int at_most, std::vector<Choice>* choices) = 0;
};

struct PolicyOptions {
  double half_life_steps = 64;
  // How many uses an admission must be expected to gain beyond those of the expert that it evicts:
  // AdmissionCost (admission_cost.h) for this machine.
  double admission_cost = 2;
  // For "profile": counts of use, in any order.
  std::vector<ExpertUses> profile = {};
};

// "profile", "lru", "prompt", "predictive", and "recency" (plain LRU: the baseline).
std::span<const std::string_view> PolicyNames();
// InvalidArgument for a name that isn't one; FailedPrecondition for "profile" without counts.
absl::StatusOr<std::unique_ptr<CachePolicy>> MakePolicy(std::string_view name,
                                                        const CacheShape& shape,
                                                        const PolicyOptions& options);

}  // namespace hearth::worker
