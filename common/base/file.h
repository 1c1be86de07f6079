// Files and mappings with errors that name the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace hearth {

// A read-only mapping of a whole regular file, or of part of a descriptor. Moves; unmaps at the
// end.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  // Refuses what is not a regular file (folders, FIFOs, devices). An empty file maps to an empty
  // span.
  static absl::StatusOr<MappedFile> OpenReadOnly(const std::filesystem::path& path);

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole of a regular file of at most `max_bytes`; ResourceExhausted names the limit when it is
// longer.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, uint64_t max_bytes);

// Replaces `path` by a file with these bytes, atomically (temporary file in the same folder, then
// rename).
absl::Status WriteFileAtomically(const std::filesystem::path& path, std::string_view bytes);

// Creates a folder (with parents) for this user only, mode 0700; refuses one that others own or can
// write.
absl::Status MakePrivateDirectory(const std::filesystem::path& path);

}  // namespace hearth
