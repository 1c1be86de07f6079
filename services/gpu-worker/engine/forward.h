// One pass of a batch through the model, as docs/model.md says it, on whatever backend the ops are.
#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/base/huge_pages.h"
#include "common/checkpoint/config.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/weights.h"
#include "services/gpu-worker/ops/ops.h"
#include "services/gpu-worker/state/cpu_sequence.h"

namespace hearth::worker {

// The rows of one sequence in a step.
struct BatchItem {
  CpuSequence* sequence = nullptr;
  RowRange rows;
  int64_t first_position = 0;
};

struct Batch {
  std::vector<int32_t> ids;        // [T]
  std::vector<int64_t> positions;  // [T]
  std::vector<BatchItem> items;
  std::vector<int32_t> logits_rows;  // rows whose logits are wanted
};

// Every buffer of a step, sized for the largest batch; none grows with the context.
struct Activations {
  HugeVector<float> x, h, delta;                    // [T, D]
  HugeVector<float> query_gate, q, gate, k, v;      // attention
  HugeVector<float> qkvz, mixed, convolved, z, ba;  // delta net
  HugeVector<float> mixer_out;                      // [T, H d] or [T, Hv dv]
  HugeVector<float> router_logits;                  // [T, E]
  HugeVector<float> shared, shared_gate;            // [T, D], [T, 1]
  RouterChoice choice;
};
Activations MakeActivations(const ModelConfig& config, int max_rows);

class Forward {
 public:
  // Borrows everything.
  Forward(const ModelConfig& config, const ModelWeights& weights, ExpertSource* experts, Ops* ops,
          int max_rows, RoutingOverride* routing = nullptr);

  // Logits of batch.logits_rows to `logits` [n, V]. Cancelled if `interrupted` turned true;
  // NotFound or Unavailable from the expert source.
  absl::Status Run(const Batch& batch, const std::function<bool()>& interrupted, float* logits);

  void SetObserver(TensorObserver observer) { observer_ = std::move(observer); }

 private:
  void Attention(const Batch& batch, const AttentionWeights& weights, int attention_layer);
  void DeltaNet(const Batch& batch, const DeltaNetWeights& weights, int delta_layer);
  absl::Status Experts(const Batch& batch, const ExpertLayerWeights& weights, int layer);
  void ImposeRouting(const Batch& batch, int layer);
  void Observe(std::string_view name, int rows, int columns, const float* values) const;
  void ObserveHidden(int layer, int n_rows);
  void ObserveRouter(int layer, int n_rows);

  const ModelConfig& config_;
  const ModelWeights& weights_;
  ExpertSource& experts_;
  Ops& ops_;
  RoutingOverride* const routing_;
  const AttentionShape attention_shape_;
  const DeltaShape delta_shape_;
  const RotaryTable rotary_;
  Activations a_;
  TensorObserver observer_;
};

}  // namespace hearth::worker
