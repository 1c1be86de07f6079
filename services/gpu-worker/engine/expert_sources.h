// Where experts come from: the store's segment (the product), or straight from a checkpoint (tests
// and small tools).
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "common/checkpoint/checkpoint.h"
#include "common/experts/segment.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

// Reads experts in place from a segment that stays mapped. Thread-safe.
class SegmentExperts final : public ExpertSource {
 public:
  explicit SegmentExperts(std::unique_ptr<SegmentReader> segment) : segment_(std::move(segment)) {}
  absl::StatusOr<ExpertRef> Get(int layer, int expert) override {
    return segment_->Expert(layer, expert);
  }
  std::span<const std::byte> Packed(int layer, int expert) override {
    const auto packed = segment_->Packed(layer, expert);
    return packed.ok() ? *packed : std::span<const std::byte>();
  }
  std::span<const std::byte> Memory() override { return segment_->segment_bytes(); }
  uint64_t generation() override { return 1; }

 private:
  std::unique_ptr<SegmentReader> segment_;
};

// Decodes experts' scales on first use and keeps them; the codes stay in the checkpoint, which must
// outlive this.
class CheckpointExperts final : public ExpertSource {
 public:
  explicit CheckpointExperts(const Checkpoint* checkpoint) : checkpoint_(*checkpoint) {}
  absl::StatusOr<ExpertRef> Get(int layer, int expert) override;

 private:
  struct Owned {
    OwnedLinear gate, up, down;
  };
  const Checkpoint& checkpoint_;
  std::mutex mutex_;
  std::map<std::pair<int, int>, Owned> owned_;  // guarded by mutex_; entries never move
};

}  // namespace hearth::worker
