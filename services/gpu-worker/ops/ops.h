// The operations that a forward pass is made of, as one table: engine/forward.cc calls nothing
// else, so a backend is one implementation of this class. An op is as coarse as the fused kernel
// that it would be on a GPU.
//
// All tensors are row-major; T rows are the tokens of a step, of several sequences. Outputs never
// alias inputs unless said. The float32 backend (exact_ops.h) computes every output element by the
// same operations in the same order whatever T is.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/tensor/linear.h"
#include "services/gpu-worker/ops/shapes.h"

namespace hearth::worker {

// A run of rows that belong to one sequence, in the order of its positions.
struct RowRange {
  int begin = 0;
  int end = 0;
  int size() const { return end - begin; }
};

// Keys and values of one layer of one sequence: pages of `page_tokens` positions, each page
// [page_tokens, G * d].
struct KvPages {
  std::span<float* const> keys;
  std::span<float* const> values;
  int page_tokens = 0;
};

struct RotaryTable {
  std::vector<double> inverse_frequencies;  // [r / 2]: pairs (j, j + r / 2)
  double scale = 1;                         // on cos and sin (YaRN's attention factor)
};

struct RouterChoice {
  std::vector<int32_t> ids;    // [T, K] by falling probability, ties to the lower id; negative: a
                               // place that Experts leaves out
  std::vector<float> weights;  // [T, K]
};

// The rows of a step that chose one expert, and where in the choice [T, K] each stands.
struct ExpertWork {
  ExpertRef expert;
  std::vector<int32_t> rows;
  std::vector<int32_t> places;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // x[t] = row ids[t] of `table` [V, D].
  virtual void Embed(const LinearRef& table, std::span<const int32_t> ids, float* x) = 0;

  // x += delta (where delta is not null), then h = x / sqrt(mean(x^2) + eps) * (1 + weight). All
  // [T, D].
  virtual void AddRmsNorm(int n_rows, int width, float* x, const float* delta, const float* weight,
                          float eps, float* h) = 0;

  // y [T, out] = x [T, in] W^T.
  virtual void Linear(const LinearRef& weights, int n_rows, const float* x, float* y) = 0;

  // From q_proj's output [T, H, 2 d] (query | gate) and k_proj's [T, G, d]: per-head norm with
  // weight 1 + w, rotary at `positions`. q [T, H, d], gate [T, H, d]; k in place.
  virtual void PrepareQueryKey(const AttentionShape& shape, int n_rows, const int64_t* positions,
                               const RotaryTable& rotary, const float* query_gate,
                               const float* q_norm, const float* k_norm, float eps, float* q,
                               float* gate, float* k) = 0;

  // Copies k, v [n, G, d] of one sequence to its pages from position `first` on.
  virtual void StoreKv(const AttentionShape& shape, int n_rows, int64_t first, const float* k,
                       const float* v, const KvPages& pages) = 0;

  // out [n, H, d] = softmax(q k^T / sqrt(d)) v * sigmoid(gate), rows at positions first .. first +
  // n - 1, each seeing all positions up to its own.
  virtual void Attention(const AttentionShape& shape, int n_rows, int64_t first, const float* q,
                         const float* gate, const KvPages& pages, float* out) = 0;

  // Takes in_proj_qkvz's output [T, Hk, q dk | k dk | v (Hv/Hk) dv | z (Hv/Hk) dv] apart: mixed [T,
  // all q | all k | all v] and z [T, Hv, dv].
  virtual void SplitQkvz(const DeltaShape& shape, int n_rows, const float* qkvz, float* mixed,
                         float* z) = 0;

  // Causal depthwise convolution and SiLU over one sequence's rows. `kernel` [W, channels], newest
  // sample last; `history` [W - 1, channels], oldest first, holds the inputs before row 0 and is
  // updated.
  virtual void Convolve(int n_rows, int channels, int width, const float* kernel,
                        const float* input, float* history, float* out) = 0;

  // The gated delta rule over one sequence's rows. mixed [n, channels] after the convolution (q and
  // k are normalised here), ba [n, Hk, b Hv/Hk | a Hv/Hk], state [Hv, dk, dv] updated, out [n, Hv,
  // dv] after the gated norm with z and `norm`.
  struct DeltaWeights {
    const float* a_log;    // [Hv]
    const float* dt_bias;  // [Hv]
    const float* norm;     // [dv], plain
    float eps;
  };
  virtual void DeltaRule(const DeltaShape& shape, const DeltaWeights& weights, int n_rows,
                         const float* mixed, const float* ba, const float* z, float* state,
                         float* out) = 0;

  // Softmax over all E logits [T, E], the K largest; divided by their sum if `normalise`.
  virtual void Route(int n_rows, int n_experts, int top_k, bool normalise, const float* logits,
                     RouterChoice* choice) = 0;

  // out [T, D] = sum over the chosen experts of weight * expert(h), in the order of the choice.
  virtual void Experts(int n_rows, int width, int top_k, const float* h,
                       std::span<const ExpertWork> work, const RouterChoice& choice,
                       float* out) = 0;

  // out = down(silu(gate h) * up h); `act` is scratch [T, F].
  virtual void Mlp(const ExpertRef& mlp, int n_rows, const float* h, float* out) = 0;

  // out += shared * sigmoid(gate), shared [T, D], gate [T, 1].
  virtual void AddGated(int n_rows, int width, const float* shared, const float* gate,
                        float* out) = 0;
};

}  // namespace hearth::worker
