// The backend of machines without a GPU: each op of the table by today's CPU ops (ops/ops.h), a
// sequence at a time where rows depend on each other.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "common/base/huge_pages.h"
#include "common/checkpoint/config.h"
#include "services/gpu-worker/engine/backend.h"
#include "services/gpu-worker/state/cpu_sequence.h"

namespace hearth::worker {

class CpuBackend final : public Backend {
 public:
  // Borrows everything. Batches have at most `max_rows` rows of CpuSequences; `routing` may be
  // null.
  CpuBackend(const ModelConfig& config, Ops* ops, ExpertSource* experts, int max_rows,
             RoutingOverride* routing);

  float* Allocate(int64_t n) override;
  absl::Status Begin(const Batch& batch) override;
  void Embed(const LinearRef& table, float* x) override;
  void AddRmsNorm(int width, float* x, const float* delta, const float* weight, float eps,
                  float* h) override;
  void Linears(std::span<const Product> products, const float* x) override;
  void RotateAndStore(const AttentionShape& shape, int attention_layer, const AttentionNorms& norms,
                      const float* query_gate, float* k, const float* v, float* q) override;
  void Attention(const AttentionShape& shape, int attention_layer, const float* q,
                 const float* query_gate, float* out) override;
  void DeltaRule(const DeltaShape& shape, int delta_layer, const DeltaWeights& weights,
                 const float* qkvz, const float* ba, float* out) override;
  absl::Status Experts(const Routing& routing, const SharedExpert& shared, int width,
                       const float* h, float* out) override;
  void Mlp(const ExpertRef& mlp, const float* h, float* out) override;
  void Head(const LinearRef& head, const float* h) override;
  absl::Status Finish(float* logits) override;
  void ShiftHidden(int width, const float* h, float* before) override;
  void LoadHidden(int width, bool of_draft, float* out) override;
  void KeepDraftHidden(int width, const float* h) override;
  void Join(int width, const float* a, const float* b, float* out) override;
  void StoreOneBefore(const AttentionShape& shape, int attention_layer, const AttentionNorms& norms,
                      float* k, const float* v) override;
  std::vector<float> Read(const float* values, int64_t n) override { return {values, values + n}; }
  const RouterChoice& Choice() override { return choice_; }

 private:
  static CpuSequence& Of(const BatchItem& item) {
    return static_cast<CpuSequence&>(*item.sequence);
  }
  int n_rows() const { return batch_->n_rows(); }
  void Route(const Routing& routing);
  void Impose(int layer, int top_k);
  // The convolution and the delta rule for some rows of one sequence.
  void DeltaRows(const DeltaShape& shape, int delta_layer, const DeltaWeights& weights,
                 CpuSequence& sequence, RowRange rows, const float* ba, float* out);

  Ops& ops_;
  ExpertSource& experts_;
  RoutingOverride* const routing_;
  const int n_layers_;  // of the model
  const int conv_width_;
  const RotaryTable rotary_;
  const Batch* batch_ = nullptr;
  std::deque<HugeVector<float>> memory_;  // elements never move
  // Scratch of ops that are finer than the table's.
  float *shared_, *gate_, *mixed_, *z_, *convolved_;
  HugeVector<float> head_rows_, logits_;
  RouterChoice choice_;
};

}  // namespace hearth::worker
