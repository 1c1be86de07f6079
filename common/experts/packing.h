// One expert as bytes: from the checkpoint's three linears to the segment's payload, and back to
// references into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/experts/layout.h"
#include "common/tensor/linear.h"

namespace hearth {

// Payload bytes of an expert with these kinds and shapes (contents are not read). InvalidArgument
// where the three don't fit together (gate and up [F, D], down [D, F]) or a dimension or block size
// is out of bounds.
absl::StatusOr<uint64_t> PackedExpertBytes(const ExpertRef& expert,
                                           ExpertLayout layout = kPlainExperts);

// Writes the payload; `payload` has exactly PackedExpertBytes(expert, layout) bytes
// (FailedPrecondition otherwise).
absl::Status PackExpert(const ExpertRef& expert, ExpertLayout layout, std::span<std::byte> payload);

// References into `payload`. DataLoss if any header is not one that PackExpert would have written:
// unknown kind, shapes that don't fit together, data or absmax outside the payload, unaligned or
// elsewhere than expected.
absl::StatusOr<ExpertRef> UnpackExpert(std::span<const std::byte> payload);

}  // namespace hearth
