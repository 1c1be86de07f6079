// Memory for a whole segment, taken before a byte of it is filled: later there would be a signal
// where now there is an error.
#pragma once

#include <cstdint>
#include <filesystem>
#include <stop_token>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/experts/segment_file.h"

namespace hearth {

// Gives the empty `file` its `bytes` and maps it, writable. On a file system that gives huge pages
// to those who ask (tmpfs with huge=advise) the memory is made through the mapping, because
// fallocate would make small pages there; elsewhere by fallocate. ResourceExhausted as
// ReserveBytes; Cancelled when `stop` was requested.
absl::StatusOr<SharedMapping> ReserveAndMap(const SegmentFile& file, std::stop_token stop);

// Of which pages files in `folder` consist, where that is more than a mapping needs: those of a
// hugetlbfs; else 1.
uint64_t PageBytesOf(const std::filesystem::path& folder);

}  // namespace hearth
