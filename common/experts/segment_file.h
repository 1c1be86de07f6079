// Files and mappings of segments: opened without ever following a link, owned by this user, mapped
// as a whole. Used by both sides of the segment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/huge_pages.h"
#include "common/base/unique_fd.h"

namespace hearth {

// Where the segment of a run folder lies by default: /dev/shm/hearth-<uid>-<8 hex of the absolute
// run folder>.segment.
std::filesystem::path DefaultSegmentPath(const std::filesystem::path& run_dir);

struct SegmentFile {
  UniqueFd fd;
  uint64_t bytes = 0;
  bool is_sparse = false;  // parts of it are not backed by memory yet
  // Of a hugetlbfs, whose files and mappings are whole pages of that size; else of a small page.
  uint64_t page_bytes = kSmallPageBytes;
  std::string identity;  // "device:inode"
};

enum class FileAccess { kRead, kReadWrite };

// Refuses links, FIFOs, folders and devices (InvalidArgument), and files that belong to another
// user or that others can write (PermissionDenied). NotFound where there is nothing.
absl::StatusOr<SegmentFile> OpenSegmentFile(const std::filesystem::path& path, FileAccess access);
// The same checks on a descriptor.
absl::StatusOr<SegmentFile> CheckSegmentFd(UniqueFd fd, const std::string& name);

// A shared mapping of a whole file, at an address that allows huge pages, which it asks for. Moves;
// unmaps at the end.
class SharedMapping {
 public:
  static absl::StatusOr<SharedMapping> Map(const SegmentFile& file, FileAccess access);
  SharedMapping() = default;
  SharedMapping(SharedMapping&& other) noexcept;
  SharedMapping& operator=(SharedMapping&& other) noexcept;
  ~SharedMapping();

  // Maps every page in now, so that no request pays for it. ResourceExhausted where touching it
  // would be SIGBUS.
  absl::Status Populate() const;
  // Has memory made for a part of a file that has holes. ResourceExhausted where there is none.
  absl::Status PopulateForWriting(uint64_t offset, uint64_t bytes) const;
  // Bytes in huge pages, of what is mapped in; see common/base/huge_pages.h.
  uint64_t HugeBytes() const;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::span<std::byte> writable_bytes() { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace hearth
