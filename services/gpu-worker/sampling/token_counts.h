// Which tokens a sequence has seen and how often it wrote them: what the penalties look at.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

namespace hearth::worker {

class TokenCounts {
 public:
  void AddPrompt(std::span<const int32_t> ids) {
    for (const int32_t id : ids) counts_[id];
  }
  void AddOutput(int32_t id) { ++counts_[id]; }

  // Token id -> times in the output; tokens of the prompt alone are there with 0.
  const std::unordered_map<int32_t, int>& seen() const { return counts_; }

 private:
  std::unordered_map<int32_t, int> counts_;
};

}  // namespace hearth::worker
