#include "services/gpu-worker/experts/profile_file.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::worker {
namespace {

constexpr uint64_t kMaxFileBytes = 64 << 20;
constexpr int kFileVersion = 1;
constexpr int kMaxId = 1 << 20;

// [layer, expert, count]
absl::StatusOr<ExpertUses> ParseUses(const json::value& value) {
  const json::array* row = value.if_array();
  uint64_t numbers[3] = {};
  bool is_good = row != nullptr && row->size() == 3;
  for (size_t i = 0; is_good && i < 3; ++i) {
    boost::system::error_code error;
    numbers[i] = (*row)[i].to_number<uint64_t>(error);
    is_good = !error && (i == 2 || numbers[i] < kMaxId);
  }
  if (!is_good) {
    return absl::InvalidArgumentError(
        "\"counts\" has an element that is not [layer, expert, count]");
  }
  return ExpertUses{static_cast<int>(numbers[0]), static_cast<int>(numbers[1]), numbers[2]};
}

absl::StatusOr<std::vector<ExpertUses>> ParseProfile(std::string_view text,
                                                     std::string_view fingerprint) {
  HEARTH_ASSIGN_OR_RETURN(const json::value root, ParseJson(text));
  const json::object* fields = root.if_object();
  const json::value* found = fields != nullptr ? fields->if_contains("fingerprint") : nullptr;
  const json::value* counts = fields != nullptr ? fields->if_contains("counts") : nullptr;
  if (found == nullptr || !found->is_string() || counts == nullptr || !counts->is_array()) {
    return absl::InvalidArgumentError("no \"fingerprint\" and \"counts\"");
  }
  const std::string_view is(found->as_string().data(), found->as_string().size());
  if (!fingerprint.empty() && is != fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("counts of checkpoint ", ToAbsl(is), ", wanted is ", ToAbsl(fingerprint)));
  }
  std::vector<ExpertUses> all;
  for (const json::value& row : counts->as_array()) {
    HEARTH_ASSIGN_OR_RETURN(const ExpertUses uses, ParseUses(row));
    all.push_back(uses);
  }
  return all;
}

}  // namespace

std::string ProfileText(std::string_view fingerprint, std::span<const ExpertUses> uses) {
  json::array counts;
  for (const ExpertUses& use : uses) {
    counts.push_back(json::array{use.layer, use.expert, use.count});
  }
  return SerializeJson(
      json::object{{"version", kFileVersion},
                   {"fingerprint", json::string(fingerprint.data(), fingerprint.size())},
                   {"counts", std::move(counts)}});
}

absl::StatusOr<std::vector<ExpertUses>> ReadProfileFile(const std::filesystem::path& file,
                                                        std::string_view fingerprint) {
  HEARTH_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxFileBytes));
  auto profile = ParseProfile(text, fingerprint);
  if (!profile.ok()) return Annotate(profile.status(), file.string());
  return profile;
}

}  // namespace hearth::worker
