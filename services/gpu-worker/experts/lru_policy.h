// "lru": recency and frequency in one number. An expert's heat is its count of uses, halved every
// half-life: a short half-life makes it LRU, a long one LFU. What was missed is admitted where its
// heat exceeds that of the coldest resident by more than an admission costs, so that an expert seen
// once does not push out one that is used regularly, and copies do not eat what they save. If they
// do so all the same, the margin grows (admission_review.h).
#pragma once

#include <vector>

#include "services/gpu-worker/experts/admission_review.h"
#include "services/gpu-worker/experts/cache_policy.h"
#include "services/gpu-worker/experts/ranked_choice.h"

namespace hearth::worker {

class LruPolicy : public CachePolicy {
 public:
  LruPolicy(const CacheShape& shape, const PolicyOptions& options)
      : review_(shape, options), candidates_(shape.n_keys()) {}

  std::string_view name() const override { return "lru"; }
  void OnStep(CacheState* state, std::span<const ExpertUse> uses,
              std::span<const int32_t> missed) override;
  void Choose(CacheState* state, int at_most, std::vector<Choice>* choices) override;
  void OnOtherChoices() override { choice_.Forget(); }

 protected:
  AdmissionReview review_;
  Candidates candidates_;

 private:
  RankedChoice choice_;
};

}  // namespace hearth::worker
