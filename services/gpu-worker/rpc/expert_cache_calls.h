// The calls about the expert cache: from the engine's tier to the wire.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hearth/v1/inference.pb.h"
#include "services/gpu-worker/experts/expert_tier.h"
#include "services/gpu-worker/rpc/serving_state.h"

namespace hearth::worker {

// Unavailable while loading; FailedPrecondition where the backend has no expert cache. Never null.
absl::StatusOr<ExpertTier*> FindExpertTier(const ServingState& state);

v1::ExpertCacheStatus ToProto(const TierStatistics& statistics);

// As ExpertTier::SetPolicy, and says so in the log.
absl::Status ChangePolicy(ExpertTier& tier, const std::string& policy);

}  // namespace hearth::worker
