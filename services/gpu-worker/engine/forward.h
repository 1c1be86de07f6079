// One pass of a batch through the model, as docs/model.md says it, on whatever backend.
#pragma once

#include <functional>
#include <string_view>

#include "absl/status/status.h"
#include "common/checkpoint/config.h"
#include "services/gpu-worker/engine/backend.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/weights.h"

namespace hearth::worker {

// Every buffer of a step, in the backend's memory, sized for the largest batch; none grows with the
// context.
struct Activations {
  float *x, *h, *delta;           // [T, D]
  float *query_gate, *q, *k, *v;  // attention
  float *qkvz, *ba;               // delta net
  float* mixer_out;               // [T, H d] or [T, Hv dv]
  float* router_logits;           // [T, E]
  float *shared, *shared_gate;    // [T, D], [T, 1]
};
Activations MakeActivations(const ModelConfig& config, int max_rows, Backend& backend);

class Forward {
 public:
  // Borrows everything.
  Forward(const ModelConfig& config, const ModelWeights& weights, Backend* backend, int max_rows);

  // Logits of batch.logits_rows to `logits` [n, V]. Cancelled if `interrupted` turned true;
  // NotFound or Unavailable from the expert source.
  absl::Status Run(const Batch& batch, const std::function<bool()>& interrupted, float* logits);

  // What Run computes between Begin and Finish.
  absl::Status Enqueue(const Batch& batch, const std::function<bool()>& interrupted);

  void SetObserver(TensorObserver observer) { observer_ = std::move(observer); }
  bool has_observer() const { return observer_ != nullptr; }

 private:
  void Attention(const AttentionWeights& weights, int attention_layer);
  void DeltaNet(const DeltaNetWeights& weights, int delta_layer);
  absl::Status Experts(const ExpertLayerWeights& weights, int layer, int n_rows);
  void Observe(std::string_view name, int rows, int columns, const float* values) const;
  void ObserveHidden(int layer, int n_rows, const Backend::Residual& residual);
  void ObserveRouter(int layer, int n_rows);

  const ModelConfig& config_;
  const ModelWeights& weights_;
  Backend& ops_;
  const AttentionShape attention_shape_;
  const DeltaShape delta_shape_;
  const Activations a_;
  TensorObserver observer_;
};

}  // namespace hearth::worker
