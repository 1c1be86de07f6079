// The dense weights on the device, in the form that the kernels read: 4-bit linears in tiles, the
// head in 8 bits, bf16 linears as they are, others (and with exact arithmetic all others) in
// float32. The embedding stays in
// pinned host memory: a step reads a row a token of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "services/gpu-worker/engine/weights.h"
#include "services/gpu-worker/ops/cuda/device.h"
#include "services/gpu-worker/ops/cuda/experts.h"

namespace hearth::worker {

// Memory that the GPU reads and writes over PCIe.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept { std::swap(data_, other.data_); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~PinnedBuffer() { cudaFreeHost(data_); }

  // Zeroed. ResourceExhausted where there is none.
  absl::Status Allocate(uint64_t bytes);
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

struct DeviceWeights {
  DeviceBuffer<std::byte> linears;
  DeviceBuffer<float> vectors;  // norms, convolutions, gates
  // Shared experts packed as slots, where they are like the routed ones; else empty.
  DeviceBuffer<uint8_t> shared_slots;  // [n_layers, and the head's] of slot_stride
  uint64_t slot_stride = 0;
  PinnedBuffer embedding;
  int embedding_bits = 16;  // bf16, else 32
};

// How the experts of this model are packed, if the kernels can read them.
struct SlotLayout {
  bool can_cache = false;  // else every expert is the CPU's
  uint64_t bytes = 0;      // of a packed expert
  uint64_t stride = 0;     // from slot to slot, as from expert to expert in the segment
  ExpertsShape shape;      // width, inner, offsets and levels
};
absl::StatusOr<SlotLayout> FindSlotLayout(const Checkpoint& checkpoint);
// Whether these bytes are an expert of that layout.
bool FitsSlot(const SlotLayout& layout, std::span<const std::byte> packed);

// Bytes that UploadWeights will take on the device.
uint64_t DeviceWeightBytes(const ModelWeights& weights, const SlotLayout& layout, bool exact);

// Points `weights` to the result, which must live as long as they. ResourceExhausted without the
// memory.
absl::StatusOr<DeviceWeights> UploadWeights(ModelWeights& weights, const SlotLayout& layout,
                                            bool exact, int n_threads);

}  // namespace hearth::worker
