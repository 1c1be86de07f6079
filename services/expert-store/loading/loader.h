// From a checkpoint's tensors to a filled segment. Used by the service and, over a memfd, by
// `hearth verify`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/experts/segment.h"
#include "common/experts/segment_writer.h"

namespace hearth::store {

struct LoadOptions {
  int n_threads = 1;
  uint64_t max_bytes_per_second = 0;  // 0: no limit
};

struct LoadProgress {
  uint64_t experts_done = 0;
  uint64_t experts_total = 0;
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
};

// Called from the loading threads, by one at a time.
using ProgressCallback = std::function<void(const LoadProgress&)>;

struct LoadSummary {
  uint64_t n_loaded = 0;   // from the checkpoint
  uint64_t n_kept = 0;     // were published already, and their checksums hold
  uint64_t n_damaged = 0;  // were published already, and their checksums did not hold
};

// Sizes of all experts, tensor by tensor. Errors name the tensor.
absl::StatusOr<SegmentPlan> PlanExperts(const Checkpoint& checkpoint, int n_threads,
                                        ExpertLayout layout = kPlainExperts,
                                        std::stop_token stop = {});

// Checks, packs and publishes every expert, several at a time. Experts that are published already
// are kept if their checksum holds. Does not mark the segment ready. The error is that of the first
// bad expert in file order among those that were tried; Cancelled soon after `stop` was requested.
absl::StatusOr<LoadSummary> LoadExperts(const Checkpoint& checkpoint, SegmentWriter& writer,
                                        const LoadOptions& options,
                                        const ProgressCallback& progress = nullptr,
                                        std::stop_token stop = {});

// Loads one expert again, wherever its entry stands.
absl::Status ReloadExpert(const Checkpoint& checkpoint, SegmentWriter& writer, int layer,
                          int expert);

// All experts in a memfd of this process.
absl::StatusOr<std::unique_ptr<SegmentReader>> LoadIntoMemory(const Checkpoint& checkpoint,
                                                              int n_threads,
                                                              ExpertLayout layout = kPlainExperts);

}  // namespace hearth::store
