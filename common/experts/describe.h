// A segment as JSON for people: `hearth inspect-segment`. Most shared memory bugs are found by
// looking.
#pragma once

#include <filesystem>

#include "absl/status/statusor.h"
#include "common/base/json.h"
#include "common/experts/segment.h"

namespace hearth {

struct DescribeOptions {
  bool checksums = false;  // recompute every expert's checksum: reads the whole segment
  bool experts =
      false;  // one object an expert, else only the experts that are not ready or damaged
};

// Header, counts a state, and per layer the kinds and shapes of its experts.
json::object DescribeSegment(const SegmentReader& reader, const DescribeOptions& options = {});

// The same for a file in any state: one that is still being filled has no reader yet.
absl::StatusOr<json::object> DescribeSegmentFile(const std::filesystem::path& path,
                                                 const DescribeOptions& options = {});

}  // namespace hearth
