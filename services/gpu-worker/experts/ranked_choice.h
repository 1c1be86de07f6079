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

// Appends choices among `candidates` by falling rank: into free slots, then in place of resident
// experts by rising rank, while the candidate's rank is more than `margin` above its victim's.
// `ranks` [key]: the more, the better it is to have that expert in a slot. Counts in `state` what
// is left out. Among equal ranks the lower key goes first.
class RankedChoice {
 public:
  void Choose(CacheState* state, std::span<const int32_t> candidates, std::span<const float> ranks,
              float margin, int at_most, std::vector<CachePolicy::Choice>* choices);

 private:
  struct Ranked {
    float rank = 0;
    int32_t id = 0;  // a key or a slot
  };
  void SortCandidates(const CacheState& state, std::span<const int32_t> candidates,
                      std::span<const float> ranks, size_t n);
  void FindVictims(const CacheState& state, std::span<const float> ranks, size_t n);

  std::vector<Ranked> best_, victims_;  // kept for their memory
};

}  // namespace hearth::worker
