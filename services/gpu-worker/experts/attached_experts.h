// The routed experts as the engine sees them: read in place from the store's segment, which may be
// replaced by another between two steps; and counts of their use, for the store's profile.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common/experts/segment.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

struct ExpertUses {
  int layer = 0;
  int expert = 0;
  uint64_t count = 0;
};

class AttachedExperts final : public ExpertSource {
 public:
  // `needs_plain`: only segments whose experts lie as in the checkpoint, for the float32 backend.
  AttachedExperts(int n_layers, int n_experts, bool needs_plain = false);

  // Engine's threads, during a step. Unavailable before the first segment is there and while an
  // expert is being reloaded; NotFound for ids out of range.
  absl::StatusOr<ExpertRef> Get(int layer, int expert) override;
  std::span<const std::byte> Packed(int layer, int expert) override;
  std::span<const std::byte> Memory() override;
  uint64_t generation() override { return generation_; }
  std::shared_ptr<const void> Hold() override { return current_; }
  void CountUse(int layer, int expert) override;

  // Any thread: from the next step on, experts are read there. InvalidArgument if its layers and
  // experts are not this model's; FailedPrecondition for tiles where plain experts are needed.
  absl::Status Offer(std::shared_ptr<const SegmentReader> reader);
  // Engine's thread, between steps: takes over what was offered last. The former mapping ends here
  // unless an engine holds it.
  void BeginStep();

  bool has_segment() const { return has_segment_; }
  uint64_t segment_bytes() const { return segment_bytes_; }
  uint64_t mean_expert_bytes() const { return mean_expert_bytes_; }

  // One count for each step in which an expert was used. Since the last call; one caller.
  std::vector<ExpertUses> TakeUses();
  // Since the start, by layer.
  std::vector<uint64_t> UsesByLayer() const;

 private:
  const int n_layers_;
  const int n_experts_;
  const bool needs_plain_;
  std::shared_ptr<const SegmentReader> current_;  // changed between steps only
  uint64_t generation_ = 0;                       // of current_

  std::mutex mutex_;
  std::shared_ptr<const SegmentReader> offered_;  // guarded by mutex_
  std::atomic<bool> has_offer_{false};
  std::atomic<bool> has_segment_{false};
  std::atomic<uint64_t> segment_bytes_{0}, mean_expert_bytes_{0};

  std::vector<std::atomic<uint64_t>> uses_;  // [n_layers, n_experts]
  std::vector<uint64_t> taken_;              // of uses_, by TakeUses
};

}  // namespace hearth::worker
