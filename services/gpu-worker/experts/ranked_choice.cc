#include "services/gpu-worker/experts/ranked_choice.h"

#include <algorithm>

namespace hearth::worker {

// best_: those that are nowhere; the first n of them by falling rank.
void RankedChoice::SortCandidates(const CacheState& state, std::span<const int32_t> candidates,
                                  std::span<const float> ranks, size_t n) {
  best_.clear();
  for (const int32_t key : candidates) {
    const auto index = static_cast<size_t>(key);
    if (state.slot_of[index] < 0) best_.push_back({ranks[index], key});
  }
  const auto middle = best_.begin() + static_cast<int64_t>(std::min(n, best_.size()));
  std::partial_sort(best_.begin(), middle, best_.end(), [](const Ranked& a, const Ranked& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.id < b.id;
  });
}

// victims_: n resident slots of least rank, by rising rank.
void RankedChoice::FindVictims(const CacheState& state, std::span<const float> ranks, size_t n) {
  const auto is_less = [](const Ranked& a, const Ranked& b) {
    return a.rank != b.rank ? a.rank < b.rank : a.id < b.id;
  };
  victims_.clear();
  if (n == 0) return;
  const int32_t n_slots = state.shape.n_slots;
  for (int32_t slot = 0; slot < n_slots; ++slot) {
    const auto index = static_cast<size_t>(slot);
    if (state.slot_state[index] != SlotState::kResident) continue;
    const Ranked ranked{ranks[static_cast<size_t>(state.key_of[index])], slot};
    if (victims_.size() < n) {
      victims_.push_back(ranked);
      std::push_heap(victims_.begin(), victims_.end(), is_less);
    } else if (is_less(ranked, victims_.front())) {
      std::pop_heap(victims_.begin(), victims_.end(), is_less);
      victims_.back() = ranked;
      std::push_heap(victims_.begin(), victims_.end(), is_less);
    }
  }
  std::sort_heap(victims_.begin(), victims_.end(), is_less);
}

void RankedChoice::Choose(CacheState* state, std::span<const int32_t> candidates,
                          std::span<const float> ranks, float margin, int at_most,
                          std::vector<CachePolicy::Choice>* choices) {
  if (candidates.empty()) return;
  const auto limit = static_cast<size_t>(std::max(at_most, 0));
  SortCandidates(*state, candidates, ranks, limit);
  const size_t n = std::min(limit, best_.size());
  state->n_dropped += best_.size() - n;
  const size_t n_free = std::min(n, state->free_slots.size());
  for (size_t i = 0; i < n_free; ++i) {
    choices->push_back({best_[i].id, state->free_slots[state->free_slots.size() - 1 - i]});
  }
  FindVictims(*state, ranks, n - n_free);
  size_t i = n_free;
  for (; i < n && i - n_free < victims_.size(); ++i) {
    const Ranked& victim = victims_[i - n_free];
    if (!(best_[i].rank > victim.rank + margin)) break;
    choices->push_back({best_[i].id, victim.id});
  }
  state->n_not_worth += n - i;
}

}  // namespace hearth::worker
