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
