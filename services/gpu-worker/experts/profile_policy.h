// "profile": what was used most before, by counts, loaded once. It evicts only what is resident
// from another policy's time, and nothing after its experts are in.
#pragma once

#include <vector>

#include "services/gpu-worker/experts/cache_policy.h"

namespace hearth::worker {

class ProfilePolicy final : public CachePolicy {
 public:
  // Counts of experts that the model doesn't have are left out.
  ProfilePolicy(const CacheShape& shape, const PolicyOptions& options);

  std::string_view name() const override { return "profile"; }
  void Choose(CacheState* state, int at_most, std::vector<Choice>* choices) override;

 private:
  std::vector<int32_t> wanted_;  // by falling count, as many as there are slots
  std::vector<char> is_wanted_;  // [key]
};

}  // namespace hearth::worker
