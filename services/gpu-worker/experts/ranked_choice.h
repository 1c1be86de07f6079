// What the dynamic policies of the expert cache share: a list of experts that may be admitted, and
// the choice of those whose rank exceeds the rank of what they would evict.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "services/gpu-worker/experts/cache_policy.h"

namespace hearth::worker {

// Keys, each once, since the last Clear.
class Candidates {
 public:
  explicit Candidates(int n_keys) : is_listed_(static_cast<size_t>(n_keys), 0) {}
  void Add(int32_t key) {
    char& is_listed = is_listed_[static_cast<size_t>(key)];
    if (is_listed == 0) keys_.push_back(key);
    is_listed = 1;
  }
  std::span<const int32_t> keys() const { return keys_; }
  void Clear() {
    for (const int32_t key : keys_) is_listed_[static_cast<size_t>(key)] = 0;
    keys_.clear();
  }

 private:
  std::vector<char> is_listed_;  // [key]
  std::vector<int32_t> keys_;
};

// What the keys are ordered by: the more, the better it is to have that expert in a slot. A key's
// rank never falls while `epoch` stays.
struct Ranks {
  std::span<const float> values;  // [key]
  uint64_t epoch = 0;
};

// Resident slots by rising rank of their experts, without looking at all slots each time: since
// ranks only rise, the coldest of an earlier look stay ahead of the rest, until they are used up.
class ColdestSlots {
 public:
  // The slot of least rank, of equal ones the lowest, that this choice has not given away; -1 if
  // none is resident.
  int32_t Peek(const CacheState& state, const Ranks& ranks);
  // This choice gives the slot, free or the one that Peek returned, to an expert of that rank.
  void Give(const CacheState& state, int32_t slot, float rank);
  void EndChoice();
  // The slots were given by others: all are looked at next time.
  void Forget() { is_known_ = false; }

 private:
  struct Entry {
    float rank = 0;
    int32_t slot = 0;
  };
  static bool IsWarmer(const Entry& a, const Entry& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.slot > b.slot;
  }
  void Push(Entry entry);
  void Pop();
  void LookAtAll(const CacheState& state, const Ranks& ranks);

  // The coldest first; ranks as they were when they were pushed. A slot may be there twice: what is
  // outdated is dropped when it comes up.
  std::vector<Entry> heap_;
  std::vector<Entry> loading_;  // found loading in this choice: back into the heap at its end
  std::vector<Entry> given_;    // in this choice, with their new ranks: the same
  std::vector<char> is_given_;  // [slot]
  Entry bound_{};               // slots in none of these are at least as warm
  bool is_known_ = false;       // whether bound_ holds; else a look at all slots is due
  uint64_t epoch_ = 0;
};

// Appends choices among `candidates` by falling rank: into free slots, then in place of resident
// experts by rising rank, while the candidate's rank is more than `margin` above its victim's.
// Counts in `state` what is left out. Among equal ranks the lower key goes first.
class RankedChoice {
 public:
  void Choose(CacheState* state, std::span<const int32_t> candidates, const Ranks& ranks,
              float margin, int at_most, std::vector<CachePolicy::Choice>* choices);
  // As ColdestSlots.
  void Forget() { coldest_.Forget(); }

 private:
  struct Ranked {
    float rank = 0;
    int32_t key = 0;
  };
  void SortCandidates(CacheState* state, std::span<const int32_t> candidates, const Ranks& ranks,
                      float least, size_t n);

  std::vector<Ranked> best_;  // kept for its memory
  ColdestSlots coldest_;
};

}  // namespace hearth::worker
