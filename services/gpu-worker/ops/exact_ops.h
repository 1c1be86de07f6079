// The float32 CPU backend: the reference for every other one, and what `--exact` runs.
#pragma once

#include "services/gpu-worker/ops/ops.h"
#include "services/gpu-worker/ops/parallel.h"

namespace hearth::worker {

// Borrows `parallel`, through which progress and interruption go. One thread at a time.
class ExactOps final : public Ops {
 public:
  explicit ExactOps(Parallel* parallel) : parallel_(*parallel) {}

  void Embed(const LinearRef& table, std::span<const int32_t> ids, float* x) override;
  void AddRmsNorm(int n_rows, int width, float* x, const float* delta, const float* weight,
                  float eps, float* h) override;
  void Linear(const LinearRef& weights, int n_rows, const float* x, float* y) override;
  void PrepareQueryKey(const AttentionShape& shape, int n_rows, const int64_t* positions,
                       const RotaryTable& rotary, const float* query_gate, const float* q_norm,
                       const float* k_norm, float eps, float* q, float* gate, float* k) override;
  void StoreKv(const AttentionShape& shape, int n_rows, int64_t first, const float* k,
               const float* v, const KvPages& pages) override;
  void Attention(const AttentionShape& shape, int n_rows, int64_t first, const float* q,
                 const float* gate, const KvPages& pages, float* out) override;
  void SplitQkvz(const DeltaShape& shape, int n_rows, const float* qkvz, float* mixed,
                 float* z) override;
  void Convolve(int n_rows, int channels, int width, const float* kernel, const float* input,
                float* history, float* out) override;
  void DeltaRule(const DeltaShape& shape, const DeltaWeights& weights, int n_rows,
                 const float* mixed, const float* ba, const float* z, float* state,
                 float* out) override;
  void Route(int n_rows, int n_experts, int top_k, bool normalise, const float* logits,
             RouterChoice* choice) override;
  void Experts(int n_rows, int width, int top_k, const float* h, std::span<const ExpertWork> work,
               const RouterChoice& choice, float* out) override;
  void Mlp(const ExpertRef& mlp, int n_rows, const float* h, float* out) override;
  void AddGated(int n_rows, int width, const float* shared, const float* gate, float* out) override;

 private:
  Parallel& parallel_;
  std::vector<float> act_, products_;  // scratch of Experts and Mlp
};

}  // namespace hearth::worker
