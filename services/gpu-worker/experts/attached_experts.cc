#include "services/gpu-worker/experts/attached_experts.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hearth::worker {

AttachedExperts::AttachedExperts(int n_layers, int n_experts, bool needs_plain)
    : n_layers_(n_layers),
      n_experts_(n_experts),
      needs_plain_(needs_plain),
      uses_(static_cast<size_t>(n_layers) * static_cast<size_t>(n_experts)),
      taken_(uses_.size(), 0) {}

absl::StatusOr<ExpertRef> AttachedExperts::Get(int layer, int expert) {
  if (current_ == nullptr) {
    return absl::UnavailableError("the expert store has not published its segment yet");
  }
  if (layer < 0 || layer >= n_layers_ || expert < 0 || expert >= n_experts_) {
    return absl::NotFoundError(absl::StrCat("no expert ", expert, " in layer ", layer));
  }
  const size_t index =
      static_cast<size_t>(layer) * static_cast<size_t>(n_experts_) + static_cast<size_t>(expert);
  uses_[index].fetch_add(1, std::memory_order_relaxed);
  return current_->Expert(layer, expert);
}

std::span<const std::byte> AttachedExperts::Packed(int layer, int expert) {
  if (current_ == nullptr) return {};
  const auto packed = current_->Packed(layer, expert);
  return packed.ok() ? *packed : std::span<const std::byte>();
}

std::span<const std::byte> AttachedExperts::Memory() {
  return current_ == nullptr ? std::span<const std::byte>() : current_->segment_bytes();
}

void AttachedExperts::CountUse(int layer, int expert) {
  uses_[static_cast<size_t>(layer) * static_cast<size_t>(n_experts_) + static_cast<size_t>(expert)]
      .fetch_add(1, std::memory_order_relaxed);
}

absl::Status AttachedExperts::Offer(std::shared_ptr<const SegmentReader> reader) {
  if (reader->n_layers() != n_layers_ || reader->n_experts() != n_experts_) {
    return absl::InvalidArgumentError(
        absl::StrCat("the segment has ", reader->n_layers(), " layers of ", reader->n_experts(),
                     " experts, the model ", n_layers_, " of ", n_experts_));
  }
  if (needs_plain_ && reader->info().expert_layout != kPlainExperts) {
    return absl::FailedPreconditionError(
        "the segment keeps experts in tiles, whose scales are rounded: start the store with "
        "--exact "
        "too");
  }
  const std::lock_guard lock(mutex_);
  segment_bytes_ = reader->bytes();
  int n_with_experts = 0;
  for (int layer = 0; layer < n_layers_; ++layer) {
    if (!absl::IsNotFound(reader->Expert(layer, 0).status())) ++n_with_experts;
  }
  mean_expert_bytes_ =
      reader->bytes() / static_cast<uint64_t>(std::max(1, n_with_experts * n_experts_));
  offered_ = std::move(reader);
  has_offer_ = true;
  has_segment_ = true;
  return absl::OkStatus();
}

void AttachedExperts::BeginStep() {
  if (!has_offer_) return;
  const std::lock_guard lock(mutex_);
  current_ = std::move(offered_);
  ++generation_;
  has_offer_ = false;
}

std::vector<ExpertUses> AttachedExperts::TakeUses() {
  std::vector<ExpertUses> uses;
  for (size_t i = 0; i < uses_.size(); ++i) {
    const uint64_t now = uses_[i].load(std::memory_order_relaxed);
    const uint64_t count = now - std::exchange(taken_[i], now);
    if (count == 0) continue;
    uses.push_back({static_cast<int>(i) / n_experts_, static_cast<int>(i) % n_experts_, count});
  }
  return uses;
}

std::vector<uint64_t> AttachedExperts::UsesByLayer() const {
  std::vector<uint64_t> by_layer(static_cast<size_t>(n_layers_), 0);
  for (size_t i = 0; i < uses_.size(); ++i) {
    by_layer[i / static_cast<size_t>(n_experts_)] += uses_[i].load(std::memory_order_relaxed);
  }
  return by_layer;
}

}  // namespace hearth::worker
