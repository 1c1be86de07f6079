// The table of operations that a forward pass is made of: engine/forward.cc calls nothing else, so
// it is the same on every backend. An op is as coarse as the fused kernel that it is on a GPU.
//
// All tensors are row-major float32 in the backend's memory (Allocate); T rows are the tokens of
// the step that Begin named, of several sequences. Outputs never alias inputs. On a GPU the calls
// only enqueue; errors of that kind come from Finish.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/base/check.h"
#include "common/tensor/linear.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/ops/ops.h"

namespace hearth::worker {

// The rows of one sequence in a step.
struct BatchItem {
  SequenceState* sequence = nullptr;
  RowRange rows;
  int64_t first_position = 0;
  // Of the rows, the last n_drafts may be taken back: states and hidden states are kept for each.
  int n_drafts = 0;
};

struct Batch {
  std::vector<int32_t> ids;        // [T]
  std::vector<int64_t> positions;  // [T]
  std::vector<BatchItem> items;
  std::vector<int32_t> logits_rows;  // rows whose logits are wanted
  bool is_draft = false;             // for Forward::Draft
  std::vector<float> temperatures;   // of those rows' samplers, or none; see Finish
  int n_rows() const { return static_cast<int>(ids.size()); }
};

class Backend {
 public:
  // One of several matrices that multiply the same rows.
  struct Product {
    const LinearRef* weights = nullptr;
    float* y = nullptr;  // [T, out]
  };
  struct AttentionNorms {
    const float* q = nullptr;  // [d]
    const float* k = nullptr;  // [d]
    float eps = 0;
  };
  struct DeltaWeights {
    const float* conv = nullptr;     // [W, channels], newest sample last
    const float* a_log = nullptr;    // [Hv]
    const float* dt_bias = nullptr;  // [Hv]
    const float* norm = nullptr;     // [dv], plain
    float eps = 0;
  };
  struct Routing {
    int layer = 0;
    int n_experts = 0;
    int top_k = 0;
    bool normalise = true;
    const float* logits = nullptr;  // [T, E]
  };

  virtual ~Backend() = default;

  // `n` floats that live as long as the backend.
  virtual float* Allocate(int64_t n) = 0;
  // The step that the following calls compute; the batch stays until Finish.
  virtual absl::Status Begin(const Batch& batch) = 0;

  // x[t] = row ids[t] of `table` [V, D].
  virtual void Embed(const LinearRef& table, float* x) = 0;

  // x += delta (where it is not null), then h = x / sqrt(mean(x^2) + eps) * (1 + weight). All [T,
  // D].
  virtual void AddRmsNorm(int width, float* x, const float* delta, const float* weight, float eps,
                          float* h) = 0;

  // y [T, out] = x [T, in] W^T, for each product.
  virtual void Linears(std::span<const Product> products, const float* x) = 0;

  // From q_proj's output [T, H, query d | gate d] and those of k_proj and v_proj [T, G, d]:
  // per-head norm with weight 1 + w and rotary at the rows' positions for q [T, H, d] and k; k and
  // v to the sequences' pages. `k` may be overwritten.
  virtual void RotateAndStore(const AttentionShape& shape, int attention_layer,
                              const AttentionNorms& norms, const float* query_gate, float* k,
                              const float* v, float* q) = 0;

  // out [T, H, d] = softmax(q k^T / sqrt(d)) v * sigmoid(gate), each row over all positions of its
  // sequence up to its own; gate as in query_gate.
  virtual void Attention(const AttentionShape& shape, int attention_layer, const float* q,
                         const float* query_gate, float* out) = 0;

  // From in_proj_qkvz's output [T, Hk, q dk | k dk | v (Hv/Hk) dv | z (Hv/Hk) dv] and in_proj_ba's
  // [T, Hk, b Hv/Hk | a Hv/Hk]: causal convolution with SiLU through the sequences' histories, and
  // the gated delta rule through their states. out [T, Hv, dv] after the gated norm with z.
  virtual void DeltaRule(const DeltaShape& shape, int delta_layer, const DeltaWeights& weights,
                         const float* qkvz, const float* ba, float* out) = 0;

  // The expert that every row has beside those that it chose.
  struct SharedExpert {
    ExpertRef mlp;
    const float* gate = nullptr;  // [T, 1]
  };
  // The router's choice: softmax over all E logits, the K largest by falling probability, ties to
  // the lower id; divided by their sum if asked. Then out [T, D] = sum over the chosen experts of
  // weight * expert(h), in the order of the choice, and sigmoid(gate) * shared(h).
  virtual absl::Status Experts(const Routing& routing, const SharedExpert& shared, int width,
                               const float* h, float* out) = 0;

  // out = down(silu(gate h) * up h).
  virtual void Mlp(const ExpertRef& mlp, const float* h, float* out) = 0;

  // Logits [n, V] of the rows that want some, from h [T, D].
  virtual void Head(const LinearRef& head, const float* h) = 0;

  // Ends the step: everything is computed, and `logits` (host memory, [n, V]) filled; null, for
  // batches with temperatures, where the backend keeps them.
  virtual absl::Status Finish(float* logits) = 0;

  // Multi-token prediction, docs/model.md; a backend without it is never asked. The head's
  // layer has KV pages too, as the attention layer behind the model's last. What they hold at
  // position t was made from the hidden state at t (after the model's norm) and the token at t + 1.

  // At the end of the model's pass, h [T, D]: to `before` the hidden state before each row, which
  // is the row above or, for an item's first, the one that its sequence kept (zeros at position 0).
  // Then keeps with each sequence those of its last row and of the n_drafts rows above it.
  virtual void ShiftHidden(int /*width*/, const float* /*h*/, float* /*before*/) {
    HEARTH_CHECK(false);
  }
  // out [T, D], one row an item: the hidden state kept for the sequence's last token or, if
  // `of_draft`, by KeepDraftHidden.
  virtual void LoadHidden(int /*width*/, bool /*of_draft*/, float* /*out*/) { HEARTH_CHECK(false); }
  virtual void KeepDraftHidden(int /*width*/, const float* /*h*/) { HEARTH_CHECK(false); }
  // out [T, 2 D] = [a | b].
  virtual void Join(int /*width*/, const float* /*a*/, const float* /*b*/, float* /*out*/) {
    HEARTH_CHECK(false);
  }
  // Norm and rotary of k, and k and v to the pages, as RotateAndStore does, but as if each row
  // stood one position earlier; a row at position 0 is left out.
  virtual void StoreOneBefore(const AttentionShape& /*shape*/, int /*attention_layer*/,
                              const AttentionNorms& /*norms*/, float* /*k*/, const float* /*v*/) {
    HEARTH_CHECK(false);
  }

  // For observers, in the middle of a step: values of the backend's memory, and the last choice.
  virtual std::vector<float> Read(const float* values, int64_t n) = 0;
  virtual const RouterChoice& Choice() = 0;
};

}  // namespace hearth::worker
