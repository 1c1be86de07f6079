// What sequences keep on the device: pages of keys and values, and delta-net and convolution
// states. Engine's thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/config.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/device.h"

namespace hearth::worker {

struct DeviceStateShape {
  int attention_layers = 0;
  int delta_layers = 0;
  int64_t token_values = 0;      // G * d: of one token's keys, and of its values, in a layer
  int64_t history_floats = 0;    // (W - 1) * channels, of a layer
  int64_t recurrent_floats = 0;  // Hv dk dv, of a layer
  int page_tokens = 0;
  int64_t n_pages = 0;
  int max_sequences = 0;
  KvType kv_type = KvType::kBf16;

  static DeviceStateShape Of(const ModelConfig& config);
  int n_kv_heads = 0;  // G: kInt8 has as many scales a token
  int64_t kv_value_bytes() const {
    return kv_type == KvType::kF32 ? 4 : kv_type == KvType::kBf16 ? 2 : 1;
  }
  // Of one layer's keys, or values; and their scales, in floats.
  int64_t PoolBytes() const { return n_pages * page_tokens * token_values * kv_value_bytes(); }
  int64_t PoolScales() const {
    return kv_type == KvType::kInt8 ? n_pages * page_tokens * n_kv_heads : 0;
  }
  // Bytes of all pages, and of all sequences' states.
  int64_t KvBytes() const { return 2 * attention_layers * (PoolBytes() + 4 * PoolScales()); }
  int64_t sequence_floats() const { return delta_layers * (history_floats + recurrent_floats); }
  int64_t StateBytes() const { return int64_t{4} * max_sequences * sequence_floats(); }
};

class CudaSequence;

class DeviceState {
 public:
  // ResourceExhausted without the memory.
  static absl::StatusOr<std::shared_ptr<DeviceState>> Create(const DeviceStateShape& shape);

  const DeviceStateShape& shape() const { return shape_; }
  int64_t pages_free() const { return static_cast<int64_t>(free_pages_.size()); }

  int32_t TakePage();
  void ReturnPage(int32_t page) { free_pages_.push_back(page); }
  // A place for one more sequence; -1 where there is none.
  int TakePlace();
  void ReturnPlace(int place) { free_places_.push_back(place); }

  // Pools of all pages of one attention layer.
  void* Keys(int attention_layer) const { return KvAt(2 * attention_layer); }
  void* Values(int attention_layer) const { return KvAt(2 * attention_layer + 1); }
  // kInt8: their scales.
  float* KeyScales(int attention_layer) const { return ScalesAt(2 * attention_layer); }
  float* ValueScales(int attention_layer) const { return ScalesAt(2 * attention_layer + 1); }
  // Of one delta-net layer of the sequence at `place`.
  float* Recurrent(int place, int delta_layer) const {
    return Sequence(place) + delta_layer * shape_.recurrent_floats;
  }
  float* History(int place, int delta_layer) const {
    return Sequence(place) + shape_.delta_layers * shape_.recurrent_floats +
           delta_layer * shape_.history_floats;
  }
  // The sequence's states, all layers.
  float* Sequence(int place) const {
    return const_cast<float*>(states_.data()) + place * shape_.sequence_floats();
  }

  // Random content for the sequence's pages and states, of about the size that real ones have: one
  // page, the same everywhere, since what is measured doesn't depend on it. Waits for `stream`.
  cudaError_t FillRandom(const CudaSequence& sequence, uint64_t seed, cudaStream_t stream) const;

 private:
  explicit DeviceState(const DeviceStateShape& shape) : shape_(shape) {}
  void* KvAt(int64_t pool) const {
    return const_cast<std::byte*>(kv_.data()) + pool * shape_.PoolBytes();
  }
  float* ScalesAt(int64_t pool) const {
    return const_cast<float*>(kv_scales_.data()) + pool * shape_.PoolScales();
  }

  const DeviceStateShape shape_;
  DeviceBuffer<std::byte> kv_;
  DeviceBuffer<float> kv_scales_;
  DeviceBuffer<float> states_;
  std::vector<int32_t> free_pages_;
  std::vector<int> free_places_;
};

class CudaSequence final : public SequenceState {
 public:
  // Takes a place where there is one; its states must be zeroed by the caller.
  explicit CudaSequence(std::shared_ptr<DeviceState> state);
  ~CudaSequence() override;

  int64_t n_tokens() const override { return n_tokens_; }
  uint64_t id() const { return id_; }  // never used again
  int place() const { return place_; }
  const std::vector<int32_t>& pages() const { return pages_; }
  int64_t PagesNeeded(int64_t n) const;
  void Grow(int64_t n);
  void Advance(int64_t n) { n_tokens_ += n; }

 private:
  const std::shared_ptr<DeviceState> state_;
  const uint64_t id_;
  const int place_;
  std::vector<int32_t> pages_;
  int64_t n_tokens_ = 0;
};

}  // namespace hearth::worker
