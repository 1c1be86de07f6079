// The fast CPU backend: 4-bit and 8-bit weights are multiplied as integers straight from their
// tiles (common/tensor/tiled.h) with activations rounded to int8 a block of 64; everything else is
// float32 in vectors. What has no fast form here (weights whose blocks straddle rows, odd widths)
// goes through the float32 backend.
//
// A row's result is the same bits whatever else is in the batch and however a prompt is cut:
// integer sums are exact, and every float sum is taken in an order that depends on shapes alone.
#pragma once

#include <array>
#include <atomic>
#include <utility>
#include <vector>

#include "common/base/huge_pages.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/exact_ops.h"
#include "services/gpu-worker/ops/kernels.h"
#include "services/gpu-worker/ops/ops.h"
#include "services/gpu-worker/ops/parallel.h"
#include "services/gpu-worker/ops/quantized_rows.h"

namespace hearth::worker {

// Work below this many multiplications stays on the caller: a loop over several threads costs
// about 2 us, in which one core does as many.
inline constexpr int64_t kInlineProducts = 150'000;

// Borrows `parallel` and `kernels`. One thread at a time.
class FastOps final : public Ops {
 public:
  FastOps(Parallel* parallel, const Kernels* kernels)
      : parallel_(*parallel), kernels_(*kernels), exact_(parallel) {}

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
  // A linear as the kernels take it.
  struct Weights {
    LinearRef ref;
    TiledMatrix matrix;              // of a tiled one
    Kernels::Plain plain = nullptr;  // of another
  };
  // One expert (or a plain MLP) and its rows: `first` is where they stand among all rows of the
  // call, in its order.
  struct Item {
    Weights gate, up, down;
    std::span<const int32_t> rows;  // of h
    int64_t first = 0;
    int n_rows() const { return static_cast<int>(rows.size()); }
    int n_groups() const { return (n_rows() + kMaxGroup - 1) / kMaxGroup; }
  };

  Weights Prepare(const LinearRef& ref);
  const IntegerLevels& LevelsOf(const std::array<float, 16>& levels);
  // Outputs [first, first + n) of one group of rows: `first` and all but the last n are multiples
  // of 16. Rows as a RowGroup for a tiled matrix, as floats `x_stride` apart for another.
  void Outputs(const Weights& weights, int64_t first, int64_t n, const RowGroup& group,
               const float* x, int64_t x_stride, float* out, int64_t stride) const;
  void Quantize(int n_rows, int64_t width, const float* x, int group_size, QuantizedRows* rows);
  // products [all rows, D] = the items' MLPs of their rows of h.
  void RunMlps(std::span<const Item> items, int n_rows, int64_t width, const float* h,
               float* products);
  void Gather(std::span<const Item> items, int64_t width, const float* h);
  void GateAndUp(const Item& item, int64_t block, int64_t width);
  void Activate(const Item& item, int group, int64_t block, float* gate, const float* up,
                int64_t stride);
  void RunFewMlps(std::span<const Item> items, int64_t width, float* products);
  void Down(const Item& item, int64_t first, int64_t n, float* products);

  Parallel& parallel_;
  const Kernels& kernels_;
  ExactOps exact_;
  std::vector<std::pair<std::array<float, 16>, IntegerLevels>> levels_;  // a model has one or two
  // Scratch, kept from call to call.
  QuantizedRows input_, gathered_, act_rows_;
  HugeVector<float> gathered_floats_, act_, products_;
  std::vector<Item> items_;
  HugeVector<float> gate_, up_;  // [all rows, inner] of RunFewMlps
  // What is not computed yet: pieces of each block of 64 of each item; blocks of each item.
  std::vector<std::atomic<int32_t>> pieces_left_, blocks_left_;
  std::vector<int32_t> all_rows_, place_rows_;
  HugeVector<float> q_, k_, decay_, beta_;                 // of the delta rule
  HugeVector<float> partial_, partial_max_, partial_sum_;  // of attention
};

}  // namespace hearth::worker
