// Whether a segment that an earlier process left behind can be taken over.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/experts/segment_writer.h"

namespace hearth::store {

enum class Adoption {
  kNone,       // nothing usable: load into a new segment
  kResumable,  // the right segment, but not finished or a sample was damaged: verify all, load the
               // rest
  kIntact,     // ready as it is; the rest is verified in the background
};

struct AdoptionResult {
  Adoption adoption = Adoption::kNone;
  std::unique_ptr<SegmentWriter> writer;  // unless kNone
  std::string reason;      // for the log; empty for kIntact and where there was no file
  uint64_t n_sampled = 0;  // checksums that were verified
  uint64_t n_sample_failures = 0;
};

inline constexpr int kAdoptionSample = 64;

// Looks at `path` and changes nothing: header, layout, table, fingerprint, shapes, state words and
// the checksums of kAdoptionSample random experts.
AdoptionResult ExamineSegment(const std::filesystem::path& path, const Checkpoint& checkpoint,
                              ExpertLayout layout);

}  // namespace hearth::store
