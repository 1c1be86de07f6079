// "recency": plain LRU that admits whatever was missed. The baseline that the others must beat.
#pragma once

#include <vector>

#include "services/gpu-worker/experts/cache_policy.h"
#include "services/gpu-worker/experts/ranked_choice.h"

namespace hearth::worker {

class RecencyPolicy final : public CachePolicy {
 public:
  explicit RecencyPolicy(const CacheShape& shape)
      : candidates_(shape.n_keys()), last_use_(static_cast<size_t>(shape.n_keys()), 0) {}

  std::string_view name() const override { return "recency"; }
  void OnStep(CacheState* state, std::span<const ExpertUse> uses,
              std::span<const int32_t> missed) override;
  void Choose(CacheState* state, int at_most, std::vector<Choice>* choices) override;
  void OnOtherChoices() override { choice_.Forget(); }

 private:
  Candidates candidates_;
  RankedChoice choice_;
  std::vector<float> last_use_;  // [key]: the step
  float step_ = 0;               // exact for 16 million steps; then all seem equally recent
};

}  // namespace hearth::worker
