// The filling side of the segment: expert-store while it loads, adopts and repairs; `hearth verify`
// over a memfd.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/experts/segment.h"
#include "common/experts/segment_file.h"
#include "common/experts/validate.h"
#include "common/tensor/linear.h"

namespace hearth {

// What a segment will hold, decided before a byte is reserved.
struct SegmentPlan {
  std::string fingerprint;  // hex, 1 to 64 digits
  int n_layers = 0;
  int n_experts = 0;
  ExpertLayout expert_layout = kPlainExperts;
  std::vector<uint64_t>
      payload_bytes;  // [n_layers * n_experts] by PackedExpertBytes; 0: no expert there
};

// Owns the one writable mapping of a segment. Different experts may be written from different
// threads at the same time; one expert by one thread at a time. Everything else is thread-safe.
class SegmentWriter {
 public:
  // Reserves the whole segment before anything is filled, and puts it at `path` (mode 0600) in
  // state kSegmentLoading, replacing what was there. ResourceExhausted says need, have and what to
  // change, and leaves nothing behind. Cancelled when `stop` was requested.
  static absl::StatusOr<std::unique_ptr<SegmentWriter>> Create(const std::filesystem::path& path,
                                                               const SegmentPlan& plan,
                                                               std::stop_token stop = {});
  // The same over a nameless file that only this process has, in huge pages where they can be had:
  // on a tmpfs of its own, else a memfd.
  static absl::StatusOr<std::unique_ptr<SegmentWriter>> CreateInMemory(const SegmentPlan& plan,
                                                                       std::stop_token stop = {});
  // An existing segment, with header and table checked; its state words tell how far it is. Errors
  // as SegmentReader's, and DataLoss for a file that is not wholly backed by memory.
  static absl::StatusOr<std::unique_ptr<SegmentWriter>> OpenExisting(
      const std::filesystem::path& path);
  ~SegmentWriter();

  const SegmentInfo& info() const { return info_; }
  const std::string& identity() const { return file_.identity; }
  bool is_ready() const;  // the segment as a whole
  ExpertState state(int layer, int expert) const;
  // 0 for a layer without experts.
  uint64_t payload_bytes(int layer, int expert) const;
  // How many experts there are, and in which state.
  struct Counts {
    uint64_t total = 0, ready = 0, loading = 0, damaged = 0, absent = 0;
  };
  Counts CountStates() const;

  // Packs, checksums and publishes one expert. FailedPrecondition if it takes other bytes than
  // planned. When the expert had been published before, its checksum must be the same (DataLoss:
  // the checkpoint changed, or the memory is bad).
  absl::Status Write(int layer, int expert, const ExpertRef& weights);
  // OK if headers and checksum hold (DataLoss otherwise). For published experts.
  absl::Status Verify(int layer, int expert) const;
  // Takes a damaged expert away from readers until it is written again.
  void Quarantine(int layer, int expert);
  // The shapes of a published expert.
  absl::StatusOr<ExpertRef> Expert(int layer, int expert) const;

  // Workers may attach from now on. FailedPrecondition unless every expert is published.
  absl::Status MarkReady();
  // Workers may not attach until MarkReady.
  void MarkLoading();

  // Bytes of the segment that lie in huge pages, of those that this process has touched.
  uint64_t HugeBytes() const { return mapping_.HugeBytes(); }

  // A reader of the same file.
  absl::StatusOr<std::unique_ptr<SegmentReader>> OpenReader() const;
  // Removes the file if it is still this one.
  void Remove();

 private:
  SegmentWriter() = default;
  static absl::StatusOr<std::unique_ptr<SegmentWriter>> Reserve(SegmentFile file,
                                                                const SegmentPlan& plan,
                                                                std::stop_token stop);
  ExpertEntry& Entry(int layer, int expert) const;
  std::span<std::byte> Payload(const ExpertEntry& entry) const;

  std::filesystem::path path_;  // empty: nameless
  SegmentFile file_;
  SharedMapping mapping_;
  SegmentInfo info_;
};

// Removes what is at `path` without following it: a file, link, FIFO or socket of this user.
// NotFound is fine. PermissionDenied names the owner; FailedPrecondition for a folder.
absl::Status RemoveSegmentFile(const std::filesystem::path& path);

}  // namespace hearth
