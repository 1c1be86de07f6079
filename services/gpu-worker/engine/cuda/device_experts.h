// The expert cache on the device: one pool of equal slots, the table that says which expert lies in
// which, and the copies that fill them in the background. The books and the choice are
// experts/expert_cache.h's.
//
// A slot changes only while no step runs: what leaves is taken from the table before the next step
// starts, and what comes is entered when its copy has ended. Engine's thread only.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "services/gpu-worker/engine/cuda/device_weights.h"
#include "services/gpu-worker/engine/cuda/pinned_segment.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/experts/expert_cache.h"
#include "services/gpu-worker/experts/prompt_division.h"
#include "services/gpu-worker/ops/cuda/device.h"
#include "services/gpu-worker/ops/cuda/exchange.h"
#include "services/gpu-worker/ops/cuda/prefill_experts.h"

namespace hearth::worker {

// With what a copy costs by the rates that `hearth doctor` measured here, or by an ordinary PC's.
PolicyOptions PolicyOfThisMachine();

class DeviceExperts {
 public:
  // `n_slots` >= 0, plus what streaming needs. ResourceExhausted without the memory.
  static absl::StatusOr<std::unique_ptr<DeviceExperts>> Create(
      const ModelConfig& config, const SlotLayout& layout, ExpertSource* experts, int64_t n_slots,
      std::string_view policy, bool divides, bool with_mtp);
  ~DeviceExperts();

  // Device bytes beyond the slots themselves: staging and tables.
  static uint64_t ExtraBytes(const ModelConfig& config, const SlotLayout& layout, bool with_mtp);

  // Whether the next BeginStep finds another segment, whose experts it fills the slots with: by
  // these counts, where there are some.
  bool is_replaced() const { return experts_.generation() != generation_; }
  void SetProfile(std::vector<ExpertUses> profile) { profile_ = std::move(profile); }

  // Before a step: enters finished copies, follows a replaced segment, and enqueues the table's
  // changes on `stream`.
  absl::Status BeginStep(cudaStream_t stream);
  // After a step that has ended: its choices [n_layers, n_rows * top_k] (-1: none) go to the books,
  // and copies start.
  void EndDecode(std::span<const int32_t> choices, int n_rows, int top_k);
  // After a draft, which is no step: its choices are booked with the next one's.
  void EndDraft(std::span<const int32_t> choices, int n_rows, int top_k);
  void EndPrompt(std::span<const int32_t> choices, int n_rows, int top_k, bool was_streamed);

  // Whether the table that a step now reads has every expert: its kernels need not wait for others.
  bool has_all() const { return n_here_ == n_wanted_; }

  // [E] on the device.
  const uint8_t* const* Slots(int layer) const {
    return table_.data() + int64_t{layer} * n_experts_;
  }

  // [E] on the device: where the layer's experts lie in host memory that the GPU can read; null
  // where it can't. Null if the GPU is not to read them there.
  const uint8_t* const* HostSlots(int layer) const {
    return host_slots_.size() == 0 ? nullptr : host_slots_.data() + int64_t{layer} * n_experts_;
  }

  // For a prefill: lists on the device of a layer's experts that are here, and streams of the
  // others. PrepareLists must come first, between BeginStep and the step's ops, and PlanStreamed
  // before a layer's ForEachStreamed.
  absl::Status PrepareLists(bool stream_others, cudaStream_t stream);
  // Whether prompts of so many rows lately needed so few of the experts that it is better to know
  // a layer's choices before anything is streamed, though the link has nothing to do meanwhile.
  bool AwaitsChoices(int n_rows) const;
  // Of the layer's others streams those that are in `choices` (all if it is empty), but for some
  // that are left to the CPU: returns how many.
  absl::StatusOr<int> PlanStreamed(int layer, int n_rows, std::span<const int32_t> choices,
                                   cudaStream_t stream);
  // [E] on the device after PlanStreamed: where the layer's experts are or will be; null: the
  // CPU's.
  const uint8_t* const* PromptSlots(int layer) const {
    return prompt_slots_.data() + int64_t{layer} * n_experts_;
  }
  // What the CPU's part of a streamed prompt took.
  void LearnCpu(int n_rows, int n_experts, double seconds) {
    prompt_division_.LearnCpu(n_rows, n_experts, seconds);
  }
  struct List {
    const PrefillExpert* experts = nullptr;  // device
    int n = 0;
  };
  List Cached(int layer) const;
  // Streams the layer's other experts group by group and calls `use` for each, on `stream`.
  template <typename Use>
  cudaError_t ForEachStreamed(int layer, cudaStream_t stream, const Use& use);

  const SlotLayout& layout() const { return layout_; }
  ExpertCache& cache() { return *cache_; }
  // Copied, and read in place.
  uint64_t pcie_bytes() const { return pcie_bytes_; }
  uint64_t in_place_bytes() const { return in_place_bytes_; }
  // Grows while BeginStep takes a segment over, which takes seconds. Any thread.
  uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }

 private:
  DeviceExperts(const ModelConfig& config, const SlotLayout& layout, ExpertSource* experts,
                bool divides, bool with_mtp);
  struct Flight {
    std::vector<Admission> admissions;
    Event done;
  };
  static constexpr int kGroup = 32;  // experts of a staging buffer
  static constexpr int kBuffers = 3;

  uint8_t* SlotAt(int64_t slot) {
    return pool_.data() + slot * static_cast<int64_t>(layout_.stride);
  }
  bool Fits(std::span<const std::byte> packed) const { return FitsSlot(layout_, packed); }
  void Update(int layer, int expert, const uint8_t* slot);
  bool StartCopy(const Admission& admission);
  void ReleaseSegment();
  absl::Status FollowSegment();
  absl::Status MapSegment();
  void Fill();
  void Land(bool wait);
  void Start(std::span<const Admission> admissions);
  cudaError_t CopyGroup(int layer, int first, int n, int buffer);
  const std::vector<ExpertUse>& UsesOf(std::span<const int32_t> choices, int n_rows, int top_k);
  void CountOnDevice();
  void CountStreamed();
  void DropUnneeded(int layer, std::span<const int32_t> choices);

  // The model's, and the multi-token prediction head's one.
  const int n_model_layers_, n_layers_, n_experts_;
  std::vector<bool> has_experts_;
  const SlotLayout layout_;
  const int admissions_a_step_;
  const bool divides_;  // misses between the CPU and the GPU
  ExpertSource& experts_;
  std::unique_ptr<ExpertCache> cache_;

  DeviceBuffer<uint8_t> pool_, staging_;
  DeviceBuffer<const uint8_t*> table_;       // [n_layers, E]
  DeviceBuffer<const uint8_t*> host_slots_;  // [n_layers, E], or empty
  std::vector<const uint8_t*> host_table_;   // as table_ will be after the updates
  int64_t n_here_ = 0, n_wanted_ = 0;        // in host_table_, and of all layers
  std::vector<SlotUpdate> updates_;
  std::vector<int32_t> update_of_;  // [n_layers, E]: place in updates_; -1: none
  PinnedBuffer pinned_updates_;
  DeviceBuffer<PrefillExpert> lists_;  // [n_layers, E]: those here, then those to stream
  PinnedBuffer pinned_lists_;
  std::vector<int> n_cached_, n_streamed_, n_listed_;  // [n_layers]: ends of the lists' parts
  DeviceBuffer<const uint8_t*> prompt_slots_;          // [n_layers, E]
  PinnedBuffer pinned_prompt_slots_;
  PromptDivision prompt_division_;
  // By the bits of the number of rows: the share of the experts that such a prompt needed last.
  std::array<double, 32> needed_share_;
  std::vector<char> is_needed_;           // [E], scratch of PlanStreamed
  std::vector<const std::byte*> packed_;  // [n_layers, E]: where the listed to stream come from

  Stream copies_;
  Event began_[kBuffers], staged_[kBuffers], used_[kBuffers];
  int in_buffer_[kBuffers] = {};  // experts of its last copies
  int next_buffer_ = 0;
  std::deque<Flight> flights_;
  uint64_t generation_ = 0;
  std::vector<ExpertUses> profile_;
  std::shared_ptr<const void> held_;  // the segment of generation_, which copies still read
  PinnedSegment segment_;
  uint64_t pcie_bytes_ = 0, in_place_bytes_ = 0;
  std::atomic<uint64_t> progress_{0};
  // Scratch of UsesOf.
  std::vector<ExpertUse> uses_, in_place_;
  std::vector<int32_t> rows_of_;  // [E]
  std::vector<int32_t> drafted_;  // [E]: rows of the head's experts since the last step
};

template <typename Use>
cudaError_t DeviceExperts::ForEachStreamed(int layer, cudaStream_t stream, const Use& use) {
  const auto l = static_cast<size_t>(layer);
  for (int first = n_cached_[l]; first < n_streamed_[l]; first += kGroup) {
    const int n = std::min(kGroup, n_streamed_[l] - first);
    const int buffer = next_buffer_;
    next_buffer_ = (next_buffer_ + 1) % kBuffers;
    cudaError_t error = CopyGroup(layer, first, n, buffer);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(stream, staged_[buffer].get());
    if (error == cudaSuccess) {
      error = use(List{lists_.data() + int64_t{layer} * n_experts_ + first, n});
    }
    if (error == cudaSuccess) error = cudaEventRecord(used_[buffer].get(), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace hearth::worker
