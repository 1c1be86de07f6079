#include "services/gpu-worker/experts/ranked_choice.h"

#include <algorithm>
#include <limits>

namespace hearth::worker {
namespace {

// Slots that a look at all of them keeps: enough for tens of steps.
constexpr size_t kKept = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

float RankOf(const CacheState& state, const Ranks& ranks, int32_t slot) {
  return ranks.values[static_cast<size_t>(state.key_of[static_cast<size_t>(slot)])];
}

}  // namespace

void ColdestSlots::Push(Entry entry) {
  heap_.push_back(entry);
  std::push_heap(heap_.begin(), heap_.end(), IsWarmer);
}

void ColdestSlots::Pop() {
  std::pop_heap(heap_.begin(), heap_.end(), IsWarmer);
  heap_.pop_back();
}

void ColdestSlots::LookAtAll(const CacheState& state, const Ranks& ranks) {
  heap_.clear();
  loading_.clear();
  is_given_.resize(state.slot_state.size(), 0);
  for (int32_t slot = 0; slot < state.shape.n_slots; ++slot) {
    const auto index = static_cast<size_t>(slot);
    if (state.key_of[index] < 0 || is_given_[index] != 0) continue;
    const bool is_resident = state.slot_state[index] == SlotState::kResident;
    (is_resident ? heap_ : loading_).push_back({RankOf(state, ranks, slot), slot});
  }
  bound_ = {kInfinity, 0};
  if (heap_.size() > kKept) {
    const auto rest = heap_.begin() + kKept;
    std::nth_element(heap_.begin(), rest, heap_.end(),
                     [](const Entry& a, const Entry& b) { return IsWarmer(b, a); });
    bound_ = *rest;
    heap_.erase(rest, heap_.end());
  }
  std::make_heap(heap_.begin(), heap_.end(), IsWarmer);
  is_known_ = true;
  epoch_ = ranks.epoch;
}

int32_t ColdestSlots::Peek(const CacheState& state, const Ranks& ranks) {
  if (!is_known_ || epoch_ != ranks.epoch) LookAtAll(state, ranks);
  for (bool has_looked = false;; has_looked = true) {
    while (!heap_.empty()) {
      const Entry top = heap_.front();
      const auto slot = static_cast<size_t>(top.slot);
      if (state.key_of[slot] < 0 || is_given_[slot] != 0) {  // free, or about to be another's
        Pop();
        continue;
      }
      const Entry now{RankOf(state, ranks, top.slot), top.slot};
      const bool is_resident = state.slot_state[slot] == SlotState::kResident;
      if (is_resident && now.rank == top.rank) return top.slot;
      Pop();
      if (!is_resident) {
        loading_.push_back(now);
      } else if (IsWarmer(bound_, now)) {  // else it is as warm as those that are not listed
        Push(now);
      }
    }
    // Used up: the coldest is among the others, if there are any.
    if (has_looked || bound_.rank == kInfinity) return -1;
    LookAtAll(state, ranks);
  }
}

void ColdestSlots::Give(const CacheState& state, int32_t slot, float rank) {
  is_given_.resize(state.slot_state.size(), 0);
  is_given_[static_cast<size_t>(slot)] = 1;
  given_.push_back({rank, slot});
}

void ColdestSlots::EndChoice() {
  for (const std::vector<Entry>* entries : {&loading_, &given_}) {
    for (const Entry& entry : *entries) {
      if (is_known_ && IsWarmer(bound_, entry)) Push(entry);
    }
  }
  for (const Entry& entry : given_) is_given_[static_cast<size_t>(entry.slot)] = 0;
  loading_.clear();
  given_.clear();
}

// best_: those that are nowhere and whose rank is above `least`; the first n by falling rank.
void RankedChoice::SortCandidates(CacheState* state, std::span<const int32_t> candidates,
                                  const Ranks& ranks, float least, size_t n) {
  best_.clear();
  for (const int32_t key : candidates) {
    const auto index = static_cast<size_t>(key);
    if (state->slot_of[index] >= 0) continue;
    if (ranks.values[index] > least) {
      best_.push_back({ranks.values[index], key});
    } else {
      ++state->n_not_worth;
    }
  }
  const auto middle = best_.begin() + static_cast<int64_t>(std::min(n, best_.size()));
  std::partial_sort(best_.begin(), middle, best_.end(), [](const Ranked& a, const Ranked& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.key < b.key;
  });
}

void RankedChoice::Choose(CacheState* state, std::span<const int32_t> candidates,
                          const Ranks& ranks, float margin, int at_most,
                          std::vector<CachePolicy::Choice>* choices) {
  if (candidates.empty()) return;
  const auto limit = static_cast<size_t>(std::max(at_most, 0));
  size_t n_free = state->free_slots.size();
  // With free slots anything may enter; else what is more than `margin` above the coldest.
  float least = -kInfinity;
  if (n_free == 0) {
    const int32_t coldest = coldest_.Peek(*state, ranks);
    least = coldest < 0 ? kInfinity : RankOf(*state, ranks, coldest) + margin;
  }
  SortCandidates(state, candidates, ranks, least, limit);
  const size_t n = std::min(limit, best_.size());
  state->n_dropped += best_.size() - n;
  size_t i = 0;
  for (; i < n; ++i) {
    int32_t slot = 0;
    if (n_free > 0) {
      slot = state->free_slots[--n_free];
    } else {
      slot = coldest_.Peek(*state, ranks);
      if (slot < 0 || !(best_[i].rank > RankOf(*state, ranks, slot) + margin)) break;
    }
    coldest_.Give(*state, slot, best_[i].rank);
    choices->push_back({best_[i].key, slot});
  }
  state->n_not_worth += n - i;
  coldest_.EndChoice();
}

}  // namespace hearth::worker
