// Experts of a prompt: those in VRAM, those that are streamed through staging buffers, and those
// that are left to the CPU.
#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/device_experts.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"

namespace hearth::worker {
namespace {

// After a prompt there is no hurry.
constexpr int kAdmissionsAPrompt = 1024;
// Of all experts: a prompt that needs fewer waits for its choices.
constexpr double kFewNeeded = 0.9;

size_t Bits(int n_rows) {
  return static_cast<size_t>(std::bit_width(static_cast<unsigned>(std::max(n_rows, 0)))) % 32;
}

}  // namespace

absl::Status DeviceExperts::PrepareLists(bool stream_others, cudaStream_t stream) {
  auto* lists = pinned_lists_.as<PrefillExpert>();
  for (int layer = 0; layer < n_model_layers_; ++layer) {  // no prompt asks the head's
    const auto l = static_cast<size_t>(layer);
    if (!has_experts_[l]) continue;
    const size_t first_key = l * static_cast<size_t>(n_experts_);
    PrefillExpert* list = lists + first_key;
    int n = 0;
    for (int e = 0; e < n_experts_; ++e) {
      const uint8_t* slot = host_table_[first_key + static_cast<size_t>(e)];
      if (slot != nullptr) list[n++] = {slot, e};
    }
    n_cached_[l] = n;
    for (int e = 0; stream_others && e < n_experts_; ++e) {
      const size_t key = first_key + static_cast<size_t>(e);
      if (host_table_[key] != nullptr) continue;
      const std::span<const std::byte> packed = experts_.Packed(layer, e);
      if (!Fits(packed)) {
        return absl::UnavailableError(
            absl::StrCat("layer ", layer, " expert ", e, " cannot be read from the store now"));
      }
      packed_[key] = packed.data();
      list[n++] = {nullptr, e};
    }
    n_listed_[l] = n;
  }
  return CudaStatus(cudaMemcpyAsync(lists_.data(), lists, static_cast<size_t>(lists_.bytes()),
                                    cudaMemcpyHostToDevice, stream),
                    "the experts' lists");
}

bool DeviceExperts::AwaitsChoices(int n_rows) const {
  return needed_share_[Bits(n_rows)] < kFewNeeded;
}

// Of the others on the layer's list only those that are chosen stay.
void DeviceExperts::DropUnneeded(int layer, std::span<const int32_t> choices) {
  is_needed_.assign(static_cast<size_t>(n_experts_), 0);
  for (const int32_t expert : choices) is_needed_[static_cast<size_t>(expert)] = 1;
  PrefillExpert* list = pinned_lists_.as<PrefillExpert>() + int64_t{layer} * n_experts_;
  int& end = n_listed_[static_cast<size_t>(layer)];
  int n = n_cached_[static_cast<size_t>(layer)];
  for (int i = n; i < end; ++i) {
    if (is_needed_[static_cast<size_t>(list[i].expert)] != 0) list[n++] = list[i];
  }
  end = n;
}

// Streamed experts go to the buffers in turn; the CPU's are the last of the list.
absl::StatusOr<int> DeviceExperts::PlanStreamed(int layer, int n_rows,
                                                std::span<const int32_t> choices,
                                                cudaStream_t stream) {
  const auto l = static_cast<size_t>(layer);
  const int64_t first_key = int64_t{layer} * n_experts_;
  if (!choices.empty()) DropUnneeded(layer, choices);
  const int n_cpu = divides_ ? prompt_division_.CpuExperts(n_listed_[l] - n_cached_[l], n_rows) : 0;
  n_streamed_[l] = n_listed_[l] - n_cpu;
  PrefillExpert* list = pinned_lists_.as<PrefillExpert>() + first_key;
  auto* slots = pinned_prompt_slots_.as<const uint8_t*>() + first_key;
  std::fill_n(slots, n_experts_, nullptr);
  int buffer = next_buffer_;
  for (int i = 0; i < n_streamed_[l]; ++i) {
    if (const int streamed = i - n_cached_[l]; streamed >= 0) {
      const int in_group = streamed % kGroup;
      if (in_group == 0 && streamed > 0) buffer = (buffer + 1) % kBuffers;
      list[i].slot = staging_.data() +
                     (int64_t{buffer} * kGroup + in_group) * static_cast<int64_t>(layout_.stride);
    }
    slots[list[i].expert] = list[i].slot;
  }
  const auto n = static_cast<size_t>(n_experts_);
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(lists_.data() + first_key, list, n * sizeof(PrefillExpert),
                                 cudaMemcpyHostToDevice, stream),
                 "the experts' lists"));
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(prompt_slots_.data() + first_key, slots, n * sizeof(void*),
                                 cudaMemcpyHostToDevice, stream),
                 "the experts' places"));
  return n_cpu;
}

DeviceExperts::List DeviceExperts::Cached(int layer) const {
  return {lists_.data() + int64_t{layer} * n_experts_, n_cached_[static_cast<size_t>(layer)]};
}

cudaError_t DeviceExperts::CopyGroup(int layer, int first, int n, int buffer) {
  const PrefillExpert* list =
      pinned_lists_.as<PrefillExpert>() + int64_t{layer} * n_experts_ + first;
  const std::byte* const* packed = packed_.data() + int64_t{layer} * n_experts_;
  uint8_t* to = staging_.data() + int64_t{buffer} * kGroup * static_cast<int64_t>(layout_.stride);
  float milliseconds = 0;
  if (in_buffer_[buffer] > 0 && cudaEventElapsedTime(&milliseconds, began_[buffer].get(),
                                                     staged_[buffer].get()) == cudaSuccess) {
    prompt_division_.LearnCopies(in_buffer_[buffer], 1e-3 * double{milliseconds});
  }
  in_buffer_[buffer] = n;
  cudaError_t error = cudaStreamWaitEvent(copies_.get(), used_[buffer].get());
  if (error == cudaSuccess) error = cudaEventRecord(began_[buffer].get(), copies_.get());
  for (int i = 0; i < n && error == cudaSuccess;) {
    // Experts that follow each other in the segment are one copy.
    const std::byte* from = packed[list[i].expert];
    int run = 1;
    while (i + run < n &&
           packed[list[i + run].expert] == from + static_cast<size_t>(run) * layout_.stride) {
      ++run;
    }
    const size_t bytes = static_cast<size_t>(run - 1) * layout_.stride + layout_.bytes;
    error = segment_.Copy(to + int64_t{i} * static_cast<int64_t>(layout_.stride), from, bytes,
                          copies_.get());
    pcie_bytes_ += bytes;
    i += run;
  }
  if (error != cudaSuccess) return error;
  return cudaEventRecord(staged_[buffer].get(), copies_.get());
}

// Of those that UsesOf found, all but the CPU's, which Get counted.
void DeviceExperts::CountStreamed() {
  const auto* slots = pinned_prompt_slots_.as<const uint8_t*>();
  for (const ExpertUse& use : uses_) {
    if (slots[int64_t{use.layer} * n_experts_ + use.expert] != nullptr) {
      experts_.CountUse(use.layer, use.expert);
    }
  }
}

void DeviceExperts::EndPrompt(std::span<const int32_t> choices, int n_rows, int top_k,
                              bool was_streamed) {
  const std::vector<ExpertUse>& uses = UsesOf(choices, n_rows, top_k);
  if (was_streamed) {
    CountStreamed();
    const auto n_experts = static_cast<double>(std::ranges::count(has_experts_, true) * n_experts_);
    needed_share_[Bits(n_rows)] = static_cast<double>(uses.size()) / n_experts;
  } else {
    CountOnDevice();
  }
  cache_->RecordPrompt(uses, n_rows);
  Land(false);
  if (layout_.can_cache) Start(cache_->PlanAdmissions(kAdmissionsAPrompt));
}

}  // namespace hearth::worker
