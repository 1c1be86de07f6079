#include "services/expert-store/usage/usage_profile.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::store {
namespace {

constexpr uint64_t kMaxFileBytes = 64 << 20;
constexpr int kFileVersion = 1;

uint64_t SaturatingAdd(uint64_t a, uint64_t b) {
  return a > std::numeric_limits<uint64_t>::max() - b ? std::numeric_limits<uint64_t>::max()
                                                      : a + b;
}

// [layer, expert, count]
absl::StatusOr<UseCount> ParseUse(const json::value& value) {
  const json::array* row = value.if_array();
  if (row == nullptr || row->size() != 3) {
    return absl::InvalidArgumentError(
        "\"counts\" has an element that is not [layer, expert, count]");
  }
  uint64_t numbers[3];
  for (size_t i = 0; i < 3; ++i) {
    boost::system::error_code error;
    numbers[i] = (*row)[i].to_number<uint64_t>(error);
    if (error || (i < 2 && numbers[i] > std::numeric_limits<uint32_t>::max())) {
      return absl::InvalidArgumentError("\"counts\" has a number out of range");
    }
  }
  return UseCount{static_cast<uint32_t>(numbers[0]), static_cast<uint32_t>(numbers[1]), numbers[2]};
}

}  // namespace

absl::Status UsageProfile::CheckIds(const UseCount& use) const {
  const size_t n_layers = shape_.layer_has_experts.size();
  if (use.layer >= n_layers || !shape_.layer_has_experts[use.layer]) {
    return absl::InvalidArgumentError(absl::StrCat("usage.layer ", use.layer,
                                                   ": not a layer with experts (the model has ",
                                                   n_layers, " layers)"));
  }
  if (use.expert >= static_cast<uint32_t>(shape_.n_experts)) {
    return absl::InvalidArgumentError(absl::StrCat("usage.expert ", use.expert, ": the model has ",
                                                   shape_.n_experts, " experts a layer"));
  }
  return absl::OkStatus();
}

absl::Status UsageProfile::Open(std::filesystem::path file, ProfileShape shape) {
  const std::lock_guard lock(mutex_);
  file_ = std::move(file);
  shape_ = std::move(shape);
  counts_.assign(shape_.layer_has_experts.size() * static_cast<size_t>(shape_.n_experts), 0);
  has_changed_ = false;
  const absl::Status status = Load();
  if (absl::IsNotFound(status)) return absl::OkStatus();
  if (!status.ok()) std::fill(counts_.begin(), counts_.end(), 0);
  return Annotate(status, file_.string());
}

absl::Status UsageProfile::Load() {
  HEARTH_ASSIGN_OR_RETURN(const std::string text, ReadFile(file_, kMaxFileBytes));
  HEARTH_ASSIGN_OR_RETURN(const json::value root, ParseJson(text));
  const json::object* fields = root.if_object();
  const json::value* fingerprint = fields != nullptr ? fields->if_contains("fingerprint") : nullptr;
  const json::value* counts = fields != nullptr ? fields->if_contains("counts") : nullptr;
  if (fingerprint == nullptr || !fingerprint->is_string() || counts == nullptr ||
      !counts->is_array()) {
    return absl::InvalidArgumentError("no \"fingerprint\" and \"counts\"");
  }
  const std::string found(fingerprint->as_string());
  if (found != shape_.fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("counts of checkpoint ", found, ", wanted is ", shape_.fingerprint));
  }
  for (const json::value& row : counts->as_array()) {
    HEARTH_ASSIGN_OR_RETURN(const UseCount use, ParseUse(row));
    HEARTH_RETURN_IF_ERROR(CheckIds(use));
    counts_[use.layer * static_cast<size_t>(shape_.n_experts) + use.expert] = use.count;
  }
  return absl::OkStatus();
}

absl::Status UsageProfile::Add(std::span<const UseCount> uses) {
  const std::lock_guard lock(mutex_);
  if (file_.empty()) return absl::UnavailableError("the store has not read its model yet");
  for (const UseCount& use : uses) HEARTH_RETURN_IF_ERROR(CheckIds(use));
  for (const UseCount& use : uses) {
    uint64_t& count = counts_[use.layer * static_cast<size_t>(shape_.n_experts) + use.expert];
    count = SaturatingAdd(count, use.count);
    has_changed_ |= use.count > 0;
  }
  return absl::OkStatus();
}

std::vector<UseCount> UsageProfile::Top(uint32_t top_n) const {
  const std::lock_guard lock(mutex_);
  const auto n_experts = static_cast<uint32_t>(shape_.n_experts);
  std::vector<UseCount> result;
  for (uint32_t layer = 0; layer < shape_.layer_has_experts.size(); ++layer) {
    std::vector<UseCount> row;
    for (uint32_t e = 0; e < n_experts; ++e) {
      const uint64_t count = counts_[layer * static_cast<size_t>(n_experts) + e];
      if (count > 0) row.push_back({layer, e, count});
    }
    std::stable_sort(row.begin(), row.end(),
                     [](const UseCount& a, const UseCount& b) { return a.count > b.count; });
    if (top_n > 0 && row.size() > top_n) row.resize(top_n);
    result.insert(result.end(), row.begin(), row.end());
  }
  return result;
}

uint64_t UsageProfile::Tokens() const {
  const std::lock_guard lock(mutex_);
  const auto n_experts = static_cast<size_t>(shape_.n_experts);
  uint64_t largest = 0;
  for (size_t layer = 0; layer < shape_.layer_has_experts.size(); ++layer) {
    uint64_t sum = 0;
    for (size_t e = 0; e < n_experts; ++e) sum = SaturatingAdd(sum, counts_[layer * n_experts + e]);
    largest = std::max(largest, sum);
  }
  return largest / static_cast<uint64_t>(std::max(1, shape_.experts_per_token));
}

std::string UsageProfile::fingerprint() const {
  const std::lock_guard lock(mutex_);
  return shape_.fingerprint;
}

std::string UsageProfile::Serialize() const {
  json::array counts;
  for (size_t i = 0; i < counts_.size(); ++i) {
    if (counts_[i] == 0) continue;
    const auto n_experts = static_cast<size_t>(shape_.n_experts);
    counts.push_back(json::array{i / n_experts, i % n_experts, counts_[i]});
  }
  return SerializeJson(json::object{{"version", kFileVersion},
                                    {"fingerprint", shape_.fingerprint},
                                    {"counts", std::move(counts)}});
}

absl::Status UsageProfile::SaveIfChanged() {
  std::filesystem::path file;
  std::string text;
  {
    const std::lock_guard lock(mutex_);
    if (!has_changed_) return absl::OkStatus();
    has_changed_ = false;
    file = file_;
    text = Serialize();
  }
  const absl::Status status = WriteFileAtomically(file, text);
  if (!status.ok()) {
    const std::lock_guard lock(mutex_);
    has_changed_ = true;  // tried again the next time
  }
  return status;
}

}  // namespace hearth::store
