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
  int64_t channels = 0;          // of the convolution
  int64_t history_floats = 0;    // (W - 1 + max_drafts) * channels, of a layer
  int64_t recurrent_floats = 0;  // Hv dk dv, of a layer
  int max_drafts = 0;            // tokens of a step that may be taken back; 0: no drafts at all
  int64_t kept_floats = 0;       // max_drafts rows that the delta rule is still to see, of a layer
  int64_t hidden_floats = 0;     // D, with drafts
  int page_tokens = 0;
  int64_t n_pages = 0;
  int max_sequences = 0;
  KvType kv_type = KvType::kBf16;

  // With drafts there is one more attention layer: the multi-token prediction head's.
  static DeviceStateShape Of(const ModelConfig& config, int max_drafts = 0);
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
  int64_t KvBytes() const {
    return int64_t{2} * attention_layers * (PoolBytes() + 4 * PoolScales());
  }
  int64_t layer_floats() const { return recurrent_floats + history_floats + 2 * kept_floats; }
  int64_t sequence_floats() const {
    return delta_layers * layer_floats() + (max_drafts + 2) * hidden_floats;
  }
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
  void* Keys(int attention_layer) const { return KvAt(int64_t{2} * attention_layer); }
  void* Values(int attention_layer) const { return KvAt(int64_t{2} * attention_layer + 1); }
  // kInt8: their scales.
  float* KeyScales(int attention_layer) const { return ScalesAt(int64_t{2} * attention_layer); }
  float* ValueScales(int attention_layer) const {
    return ScalesAt(int64_t{2} * attention_layer + 1);
  }
  // Of one delta-net layer of the sequence at `place`.
  float* Recurrent(int place, int delta_layer) const {
    return Sequence(place) + delta_layer * shape_.recurrent_floats;
  }
  float* History(int place, int delta_layer) const {
    return Sequence(place) + shape_.delta_layers * shape_.recurrent_floats +
           delta_layer * shape_.history_floats;
  }
  // One of two places for rows that may be taken back (ops/cuda/delta_cuda.h, DeltaDrafts).
  float* Kept(int place, int delta_layer, int half) const {
    return Sequence(place) +
           shape_.delta_layers * (shape_.recurrent_floats + shape_.history_floats) +
           (2 * delta_layer + half) * shape_.kept_floats;
  }
  // Hidden states of the last token of the last step that was sure, and of the drafts behind it.
  float* Hidden(int place, int draft) const {
    return Sequence(place) + shape_.delta_layers * shape_.layer_floats() +
           draft * shape_.hidden_floats;
  }
  // That of the last guess.
  float* DraftHidden(int place) const { return Hidden(place, shape_.max_drafts + 1); }
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
  uint64_t pages_version() const { return pages_version_; }  // of pages()
  int64_t PagesNeeded(int64_t n) const;
  void Grow(int64_t n);
  // After a step of `n` tokens whose last `n_drafts` may be taken back.
  void Advance(int64_t n, int n_drafts = 0);
  // Takes back the last `n` tokens, of those that may be.
  void Rollback(int n);

  // Tokens seen that its states have yet to see: drafts of the last step that were not taken back.
  int n_pending() const { return n_pending_; }
  // Where the next step keeps the rows of its drafts; the pending ones lie in the other half.
  int kept_half() const { return kept_half_; }
  // Guesses since the last step.
  int n_guessed() const { return n_guessed_; }
  void set_n_guessed(int n) { n_guessed_ = n; }

 private:
  const std::shared_ptr<DeviceState> state_;
  const uint64_t id_;
  const int place_;
  std::vector<int32_t> pages_;
  uint64_t pages_version_ = 0;
  int64_t n_tokens_ = 0;
  int n_pending_ = 0, kept_half_ = 0, n_guessed_ = 0;
};

}  // namespace hearth::worker
