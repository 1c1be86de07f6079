// The dense weights of a model, named as docs/model.md names them. Experts are not here:
// ExpertSource has them.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace hearth::worker {

// gate, up and down of a plain or shared MLP.
struct MlpWeights {
  OwnedLinear gate, up, down;
  ExpertRef ref() const { return {gate.ref, up.ref, down.ref}; }
};

struct AttentionWeights {
  OwnedLinear q_proj, k_proj, v_proj, o_proj;
  std::vector<float> q_norm, k_norm;  // [d]
};

struct DeltaNetWeights {
  OwnedLinear in_proj_qkvz, in_proj_ba, out_proj;
  std::vector<float> conv;            // [W, channels]: transposed from the file's [channels, 1, W]
  std::vector<float> a_log, dt_bias;  // [Hv]
  std::vector<float> norm;            // [dv]
};

struct ExpertLayerWeights {
  OwnedLinear router;              // [E, D]
  OwnedLinear shared_expert_gate;  // [1, D]
  MlpWeights shared_expert;
};

struct LayerWeights {
  std::vector<float> input_norm, post_attention_norm;  // [D]
  AttentionWeights attention;                          // of a full-attention layer
  DeltaNetWeights delta_net;                           // of a delta-net layer
  ExpertLayerWeights experts;                          // of a layer with experts
  MlpWeights mlp;                                      // of a plain layer
};

struct ModelWeights {
  OwnedLinear embedding;  // [V, D]
  std::vector<LayerWeights> layers;
  std::vector<float> norm;  // [D]
  OwnedLinear head;         // [V, D]
};

// Codes and bf16 values stay in the mapped checkpoint, which must outlive the result.
absl::StatusOr<ModelWeights> ReadWeights(const Checkpoint& checkpoint);

}  // namespace hearth::worker
