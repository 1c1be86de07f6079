// The segment: one shared-memory file that holds all experts, written by expert-store, mapped
// read-only by workers. layout.h has the bytes, segment_writer.h the side that fills them.
//
// No lock, queue or reference count lives in it: one writer, any number of readers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"
#include "common/experts/validate.h"
#include "common/tensor/linear.h"

namespace hearth {

// A worker's view. Every offset, size and header is checked once by Open; lookups then only read a
// state word. Thread-safe.
class SegmentReader {
 public:
  // Opens read-only and maps the whole segment, populated. FailedPrecondition if fingerprint (hex;
  // empty: any) or layout version differ (both are named); DataLoss if anything in header or table
  // points outside or doesn't fit; Unavailable while it is being filled for the first time; what
  // OpenSegmentFile refuses.
  static absl::StatusOr<std::unique_ptr<SegmentReader>> Open(const std::filesystem::path& path,
                                                             const std::string& fingerprint);
  // The same over a descriptor (memfd in `hearth verify` and tests).
  static absl::StatusOr<std::unique_ptr<SegmentReader>> FromFd(UniqueFd fd,
                                                               const std::string& fingerprint);
  virtual ~SegmentReader() = default;

  // Unavailable while the expert is being loaded or reloaded; NotFound for a layer without experts
  // or an id out of range. The reference stays valid as long as the reader lives.
  virtual absl::StatusOr<ExpertRef> Expert(int layer, int expert) const = 0;
  // The same expert's payload (packing.h), checked.
  virtual absl::StatusOr<std::span<const std::byte>> Packed(int layer, int expert) const = 0;

  virtual int n_layers() const = 0;
  virtual int n_experts() const = 0;
  virtual uint64_t bytes() const = 0;
  virtual const std::string& fingerprint() const = 0;
  // Identifies the file: two readers of one segment agree (device and inode).
  virtual std::string identity() const = 0;

  // How many of those bytes lie in huge pages.
  virtual uint64_t HugeBytes() const = 0;

  // The mapped bytes and what the header says, for dumps and checks (describe.h).
  virtual std::span<const std::byte> segment_bytes() const = 0;
  virtual const SegmentInfo& info() const = 0;
};

}  // namespace hearth
