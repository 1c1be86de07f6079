// A worker's side of the segment.
#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/experts/packing.h"
#include "common/experts/segment.h"
#include "common/experts/segment_file.h"

namespace hearth {
namespace {

// Payload headers are checked and copied once, at Open for experts that are ready, else at the
// first lookup after their reload; from then on a lookup reads the state word only.
class MappedSegment final : public SegmentReader {
 public:
  MappedSegment(SharedMapping mapping, SegmentInfo info, std::string identity)
      : mapping_(std::move(mapping)),
        info_(std::move(info)),
        identity_(std::move(identity)),
        table_(TableOf(mapping_.bytes(), info_)),
        experts_(table_.size()),
        is_checked_(table_.size()) {}

  absl::Status CheckReadyExperts() {
    for (size_t i = 0; i < table_.size(); ++i) {
      if (table_[i].state.load(std::memory_order_acquire) != kExpertReady) continue;
      HEARTH_RETURN_IF_ERROR(CheckPayload(i));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ExpertRef> Expert(int layer, int expert) const override {
    if (layer < 0 || layer >= info_.n_layers || expert < 0 || expert >= info_.n_experts) {
      return absl::NotFoundError(absl::StrCat("layer ", layer, " expert ", expert,
                                              ": the segment has ", info_.n_layers, " layers of ",
                                              info_.n_experts, " experts"));
    }
    const size_t index = info_.Index(layer, expert);
    // Pairs with the release store of the writer: kExpertReady makes the payload visible.
    if (table_[index].state.load(std::memory_order_acquire) != kExpertReady) [[unlikely]] {
      return NotReady(layer, expert);
    }
    if (!is_checked_[index].load(std::memory_order_acquire)) [[unlikely]] {
      HEARTH_RETURN_IF_ERROR(CheckPayload(index));
    }
    return experts_[index];
  }

  absl::StatusOr<std::span<const std::byte>> Packed(int layer, int expert) const override {
    HEARTH_RETURN_IF_ERROR(Expert(layer, expert).status());
    return PayloadOf(mapping_.bytes(), table_[info_.Index(layer, expert)]);
  }

  int n_layers() const override { return info_.n_layers; }
  int n_experts() const override { return info_.n_experts; }
  uint64_t bytes() const override { return info_.total_bytes; }
  const std::string& fingerprint() const override { return info_.fingerprint; }
  std::string identity() const override { return identity_; }
  uint64_t HugeBytes() const override { return mapping_.HugeBytes(); }
  std::span<const std::byte> segment_bytes() const override { return mapping_.bytes(); }
  const SegmentInfo& info() const override { return info_; }

 private:
  absl::Status NotReady(int layer, int expert) const {
    if (table_[info_.Index(layer, expert)].payload_bytes == 0) {
      return absl::NotFoundError(absl::StrCat("layer ", layer, " has no experts"));
    }
    return absl::UnavailableError(
        absl::StrCat("layer ", layer, " expert ", expert, " is being loaded"));
  }

  absl::Status CheckPayload(size_t index) const {
    const std::lock_guard lock(mutex_);
    if (is_checked_[index].load(std::memory_order_relaxed)) return absl::OkStatus();
    auto expert = UnpackExpert(PayloadOf(mapping_.bytes(), table_[index]));
    if (!expert.ok()) {
      const size_t n_experts = static_cast<size_t>(info_.n_experts);
      return Annotate(expert.status(), absl::StrCat("segment is damaged: layer ", index / n_experts,
                                                    " expert ", index % n_experts));
    }
    experts_[index] = *expert;
    is_checked_[index].store(true, std::memory_order_release);
    return absl::OkStatus();
  }

  const SharedMapping mapping_;
  const SegmentInfo info_;
  const std::string identity_;
  const std::span<const ExpertEntry> table_;
  mutable std::mutex mutex_;                // serialises CheckPayload
  mutable std::vector<ExpertRef> experts_;  // [i] written once, before is_checked_[i]
  mutable std::vector<std::atomic<bool>> is_checked_;
};

absl::StatusOr<std::unique_ptr<SegmentReader>> OpenChecked(SegmentFile file,
                                                           const std::string& fingerprint) {
  // Mapped in only after the cheap checks: a segment of another model is refused at once.
  HEARTH_ASSIGN_OR_RETURN(SharedMapping mapping, SharedMapping::Map(file, FileAccess::kRead));
  HEARTH_ASSIGN_OR_RETURN(SegmentInfo info, CheckHeader(mapping.bytes()));
  if (!fingerprint.empty() && info.fingerprint != fingerprint) {
    return absl::FailedPreconditionError(absl::StrCat(
        "segment holds the experts of checkpoint ", info.fingerprint, ", wanted is ", fingerprint));
  }
  if (HeaderOf(mapping.bytes()).state.load(std::memory_order_acquire) != kSegmentReady) {
    return absl::UnavailableError("segment is still being filled");
  }
  HEARTH_RETURN_IF_ERROR(CheckTable(mapping.bytes(), info));
  HEARTH_RETURN_IF_ERROR(mapping.Populate());
  auto reader = std::make_unique<MappedSegment>(std::move(mapping), std::move(info), file.identity);
  HEARTH_RETURN_IF_ERROR(reader->CheckReadyExperts());
  return reader;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentReader>> SegmentReader::Open(
    const std::filesystem::path& path, const std::string& fingerprint) {
  HEARTH_ASSIGN_OR_RETURN(SegmentFile file, OpenSegmentFile(path, FileAccess::kRead));
  auto reader = OpenChecked(std::move(file), fingerprint);
  if (!reader.ok()) return Annotate(reader.status(), path.string());
  return reader;
}

absl::StatusOr<std::unique_ptr<SegmentReader>> SegmentReader::FromFd(
    UniqueFd fd, const std::string& fingerprint) {
  HEARTH_ASSIGN_OR_RETURN(SegmentFile file, CheckSegmentFd(std::move(fd), "segment"));
  return OpenChecked(std::move(file), fingerprint);
}

}  // namespace hearth
