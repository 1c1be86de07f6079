#include "services/gpu-worker/experts/cache_policy.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "services/gpu-worker/experts/lru_policy.h"
#include "services/gpu-worker/experts/predictive_policy.h"
#include "services/gpu-worker/experts/profile_policy.h"
#include "services/gpu-worker/experts/prompt_policy.h"
#include "services/gpu-worker/experts/recency_policy.h"

namespace hearth::worker {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"lru", "prompt", "predictive", "profile",
                                                    "recency"};

}  // namespace

std::vector<int32_t> KeysByCount(const CacheShape& shape, std::span<const ExpertUses> profile) {
  std::vector<uint64_t> counts(static_cast<size_t>(shape.n_keys()), 0);
  for (const ExpertUses& uses : profile) {
    if (uses.layer < 0 || uses.layer >= shape.n_layers || uses.expert < 0 ||
        uses.expert >= shape.n_experts || !shape.HasExperts(uses.layer)) {
      continue;
    }
    counts[static_cast<size_t>(shape.Key(uses.layer, uses.expert))] = uses.count;
  }
  std::vector<int32_t> keys;
  for (int32_t key = 0; key < shape.n_keys(); ++key) {
    if (counts[static_cast<size_t>(key)] > 0) keys.push_back(key);
  }
  std::ranges::stable_sort(keys, [&counts](int32_t a, int32_t b) {
    return counts[static_cast<size_t>(a)] > counts[static_cast<size_t>(b)];
  });
  return keys;
}

std::span<const std::string_view> PolicyNames() { return kNames; }

absl::StatusOr<std::unique_ptr<CachePolicy>> MakePolicy(std::string_view name,
                                                        const CacheShape& shape,
                                                        const PolicyOptions& options) {
  if (name == "lru") return std::make_unique<LruPolicy>(shape, options);
  if (name == "prompt") return std::make_unique<PromptPolicy>(shape, options);
  if (name == "predictive") return std::make_unique<PredictivePolicy>(shape, options);
  if (name == "recency") return std::make_unique<RecencyPolicy>(shape);
  if (name == "profile") {
    if (!options.profile.empty()) return std::make_unique<ProfilePolicy>(shape, options);
    return absl::FailedPreconditionError(
        "the policy 'profile' needs counts: from a file (hearth profile) or from the expert store, "
        "which has none yet");
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "no policy of the expert cache is called '", ToAbsl(name), "': there are ",
      absl::StrJoin(PolicyNames(), ", ",
                    [](std::string* out, std::string_view known) { out->append(known); })));
}

}  // namespace hearth::worker
