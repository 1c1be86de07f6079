#include "services/gpu-worker/experts/profile_policy.h"

#include <algorithm>

namespace hearth::worker {

ProfilePolicy::ProfilePolicy(const CacheShape& shape, const PolicyOptions& options)
    : wanted_(KeysByCount(shape, options.profile)),
      is_wanted_(static_cast<size_t>(shape.n_keys()), 0) {
  wanted_.resize(std::min(wanted_.size(), static_cast<size_t>(shape.n_slots)));
  for (const int32_t key : wanted_) is_wanted_[static_cast<size_t>(key)] = 1;
}

void ProfilePolicy::Choose(CacheState* state, int at_most, std::vector<Choice>* choices) {
  size_t n_free = state->free_slots.size();
  int32_t slot = 0;
  // The next slot whose expert is not wanted; -1: none.
  const auto next_victim = [&] {
    for (; slot < state->shape.n_slots; ++slot) {
      const auto index = static_cast<size_t>(slot);
      if (state->slot_state[index] == SlotState::kResident &&
          is_wanted_[static_cast<size_t>(state->key_of[index])] == 0) {
        return slot++;
      }
    }
    return -1;
  };
  for (const int32_t key : wanted_) {
    if (static_cast<int>(choices->size()) >= at_most) return;
    if (state->slot_of[static_cast<size_t>(key)] >= 0) continue;
    const int32_t chosen = n_free > 0 ? state->free_slots[--n_free] : next_victim();
    if (chosen < 0) return;
    choices->push_back({key, chosen});
  }
}

}  // namespace hearth::worker
