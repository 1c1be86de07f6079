// The dense weights of a model, named as docs/model.md names them. Experts are not here:
// ExpertSource has them.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace hearth::worker {

// A few floats that belong to the weights: their own, or moved to where a backend wants them.
class FloatArray {
 public:
  FloatArray() = default;
  FloatArray(std::vector<float> values)  // NOLINT(google-explicit-constructor): as read
      : values_(std::move(values)), data_(values_.data()), size_(values_.size()) {}
  FloatArray(FloatArray&&) = default;  // a vector's values stay where they are
  FloatArray& operator=(FloatArray&&) = default;
  FloatArray(const FloatArray&) = delete;
  FloatArray& operator=(const FloatArray&) = delete;

  const float* data() const { return data_; }
  size_t size() const { return size_; }
  // From now on they are read at `elsewhere`, which holds them already; their own are dropped.
  void MoveTo(const float* elsewhere) {
    data_ = elsewhere;
    values_ = {};
  }

 private:
  std::vector<float> values_;
  const float* data_ = nullptr;
  size_t size_ = 0;
};

// gate, up and down of a plain or shared MLP.
struct MlpWeights {
  OwnedLinear gate, up, down;
  ExpertRef ref() const { return {gate.ref, up.ref, down.ref}; }
};

struct AttentionWeights {
  OwnedLinear q_proj, k_proj, v_proj, o_proj;
  FloatArray q_norm, k_norm;  // [d]
};

struct DeltaNetWeights {
  OwnedLinear in_proj_qkvz, in_proj_ba, out_proj;
  FloatArray conv;            // [W, channels]: transposed from the file's [channels, 1, W]
  FloatArray a_log, dt_bias;  // [Hv]
  FloatArray norm;            // [dv]
};

struct ExpertLayerWeights {
  OwnedLinear router;              // [E, D]
  OwnedLinear shared_expert_gate;  // [1, D]
  MlpWeights shared_expert;
};

struct LayerWeights {
  FloatArray input_norm, post_attention_norm;  // [D]
  AttentionWeights attention;                  // of a full-attention layer
  DeltaNetWeights delta_net;                   // of a delta-net layer
  ExpertLayerWeights experts;                  // of a layer with experts
  MlpWeights mlp;                              // of a plain layer
};

// The multi-token prediction head: one full-attention layer with experts on
// fc([norm(embedding) | norm(hidden)]). Embedding and head are the model's; its experts are layer
// n_layers of the expert source.
struct MtpWeights {
  OwnedLinear fc;             // [D, 2 D]
  FloatArray embedding_norm;  // [D]
  FloatArray hidden_norm;     // [D]
  LayerWeights layer;
  FloatArray norm;  // [D]
};

struct ModelWeights {
  OwnedLinear embedding;  // [V, D]
  std::vector<LayerWeights> layers;
  FloatArray norm;   // [D]
  OwnedLinear head;  // [V, D]
  std::optional<MtpWeights> mtp;
};

// Codes and bf16 values stay in the mapped checkpoint, which must outlive the result. `with_mtp`:
// the multi-token prediction head too, where the checkpoint has one.
absl::StatusOr<ModelWeights> ReadWeights(const Checkpoint& checkpoint, bool with_mtp = false);

}  // namespace hearth::worker
