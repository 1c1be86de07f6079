// Counts of use in a file: the format in which the expert store keeps them, so that each reads the
// other's. Written by `hearth profile`, read for the policy "profile".
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/gpu-worker/experts/attached_experts.h"

namespace hearth::worker {

std::string ProfileText(std::string_view fingerprint, std::span<const ExpertUses> uses);

// FailedPrecondition if it is of other experts than `fingerprint` (empty: any);
// InvalidArgument where the file is no profile.
absl::StatusOr<std::vector<ExpertUses>> ReadProfileFile(const std::filesystem::path& file,
                                                        std::string_view fingerprint);

}  // namespace hearth::worker
