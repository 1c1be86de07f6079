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
  float* joined = nullptr;        // [T, 2 D], with a multi-token prediction head
};
Activations MakeActivations(const ModelConfig& config, int max_rows, bool with_mtp,
                            Backend& backend);

class Forward {
 public:
  // Borrows everything.
  Forward(const ModelConfig& config, const ModelWeights& weights, Backend* backend, int max_rows);

  // Logits of batch.logits_rows to `logits` [n, V]. Cancelled if `interrupted` turned true;
  // NotFound or Unavailable from the expert source.
  absl::Status Run(const Batch& batch, const std::function<bool()>& interrupted, float* logits);

  // What Run computes between Begin and Finish.
  absl::Status Enqueue(const Batch& batch, const std::function<bool()>& interrupted);

  // Logits of the guesses of the multi-token prediction head, which `weights` must have: a row for
  // each of the batch's items, which have one row each, at the position before its token's. `depth`
  // as Engine::Draft's.
  absl::Status Draft(const Batch& batch, int depth, const std::function<bool()>& interrupted,
                     float* logits);
  absl::Status EnqueueDraft(const Batch& batch, int depth);

  void SetObserver(TensorObserver observer) { observer_ = std::move(observer); }
  bool has_observer() const { return observer_ != nullptr; }

 private:
  // Of the model's pass, for the head to guess from later: keys and values of its layer.
  void StoreForDrafts();
  // x = fc([norm(embedding of the batch's tokens) | norm(hidden)]), then h = norm(x) for the head's
  // layer.
  void EnterMtpLayer(float* hidden);
  void Attention(const AttentionWeights& weights, int attention_layer);
  void DeltaNet(const DeltaNetWeights& weights, int delta_layer);
  absl::Status Experts(const ExpertLayerWeights& weights, int layer, int n_rows);
  void Observe(std::string_view name, int rows, int columns, const float* values) const;
  void ObserveHidden(int layer, int n_rows);
  void ObserveRouter(int layer, int n_rows);

  const ModelConfig& config_;
  const ModelWeights& weights_;
  Backend& ops_;
  const int mtp_attention_;  // the head's attention layer comes after the model's
  const AttentionShape attention_shape_;
  const DeltaShape delta_shape_;
  const Activations a_;
  TensorObserver observer_;
};

}  // namespace hearth::worker
