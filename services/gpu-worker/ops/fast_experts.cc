// The router's choice and the experts of the fast CPU backend.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "services/gpu-worker/ops/fast_ops.h"

namespace hearth::worker {
namespace {

// Outputs of down_proj that a thread takes at once.
constexpr int64_t kDownOutputs = 128;

bool HasFastForm(const LinearRef& ref) { return ref.kind != WeightKind::kBlock4; }
bool HasFastForm(const ExpertRef& expert) {
  return HasFastForm(expert.gate) && HasFastForm(expert.up) && HasFastForm(expert.down);
}

}  // namespace

void FastOps::Route(int n_rows, int n_experts, int top_k, bool normalise, const float* logits,
                    RouterChoice* choice) {
  choice->ids.resize(static_cast<size_t>(n_rows) * static_cast<size_t>(top_k));
  choice->weights.resize(choice->ids.size());
  const auto row = [&](int64_t t) {
    const int64_t n_rounded = (n_experts + 15) / 16 * 16;
    std::vector<float> terms(static_cast<size_t>(n_experts)),
        scratch(static_cast<size_t>(n_rounded + n_rounded / 16));
    float largest = 0;
    const float* from = logits + t * n_experts;
    const float total = kernels_.softmax_terms(from, n_experts, &largest, terms.data());
    float* weights = choice->weights.data() + t * top_k;
    int32_t* ids = choice->ids.data() + t * top_k;
    // By the logits: different ones may have equal terms.
    kernels_.top_k(from, n_experts, top_k, scratch.data(), ids);
    for (int k = 0; k < top_k; ++k) weights[k] = terms[static_cast<size_t>(ids[k])];
    const float chosen = std::accumulate(weights, weights + top_k, 0.f);
    for (int k = 0; k < top_k; ++k) weights[k] /= normalise ? chosen : total;
  };
  if (int64_t{n_rows} * n_experts * 16 < kInlineProducts) {
    for (int t = 0; t < n_rows; ++t) row(t);
  } else {
    parallel_.Each(n_rows, row);
  }
}

// Stage 0: each item's rows side by side, in groups, as its kernels want them.
void FastOps::Gather(std::span<const Item> items, int64_t width, const float* h) {
  const bool any_plain = std::ranges::any_of(items, [](const Item& item) {
    return item.gate.plain != nullptr || item.up.plain != nullptr;
  });
  const int64_t n_rows = items.back().first + items.back().n_rows();
  if (any_plain) gathered_floats_.resize(static_cast<size_t>(n_rows * width));
  gathered_.Reshape(n_rows, input_.width(), kMaxGroup);
  const int64_t n_blocks = input_.width() / kBlock;
  const auto gather = [&](int64_t i) {
    const Item& item = items[static_cast<size_t>(i)];
    for (int n = 0; n < item.n_rows(); ++n) {
      const int64_t row = item.rows[static_cast<size_t>(n)];
      if (any_plain) {
        std::copy_n(h + row * width, width, gathered_floats_.data() + (item.first + n) * width);
      }
      const int begin = n / kMaxGroup * kMaxGroup;
      const int in_group = std::min(kMaxGroup, item.n_rows() - begin);
      const RowGroup from = input_.Group(row, 1);
      int8_t* q = gathered_.q(item.first + begin);
      BlockScale* scales = gathered_.scales(item.first + begin);
      for (int64_t b = 0; b < n_blocks; ++b) {
        const int64_t to = b * in_group + n - begin;
        std::memcpy(q + to * kBlock, from.q + b * kBlock, kBlock);
        scales[to] = from.scales[b];
      }
    }
  };
  if (n_rows * width < kInlineProducts) {
    for (size_t i = 0; i < items.size(); ++i) gather(static_cast<int64_t>(i));
  } else {
    parallel_.Each(static_cast<int64_t>(items.size()), gather);
  }
}

// Stage 1: 64 columns of act = silu(gate h) * up h of one item, rounded for down_proj.
void FastOps::GateAndUp(const Item& item, int64_t block, int64_t width) {
  const int64_t inner = item.gate.ref.out, first = block * kBlock;
  const int64_t n = std::min<int64_t>(kBlock, inner - first);
  alignas(64) float gate[kMaxGroup * kBlock], up[kMaxGroup * kBlock];
  for (int g = 0; g < item.n_groups(); ++g) {
    const int64_t row = item.first + int64_t{g} * kMaxGroup;
    const int in_group = std::min(kMaxGroup, item.n_rows() - g * kMaxGroup);
    const RowGroup group = gathered_.Group(row, in_group);
    const float* x = gathered_floats_.data() + row * width;  // read by plain weights only
    Outputs(item.gate, first, n, group, x, width, gate, kBlock);
    Outputs(item.up, first, n, group, x, width, up, kBlock);
    for (int t = 0; t < in_group; ++t) {
      float* act = gate + t * kBlock;
      kernels_.silu_mul(act, up + t * kBlock, n, act);
      if (item.down.plain != nullptr) {
        std::copy_n(act, n, act_.data() + (row + t) * inner + first);
      } else {
        kernels_.quantize(act, kBlock, t, in_group, act_rows_.q(row) + block * in_group * kBlock,
                          act_rows_.scales(row) + block * in_group);
      }
    }
  }
}

// Stage 2: outputs [first, first + n) of down_proj for one item's rows.
void FastOps::Down(const Item& item, int64_t first, int64_t n, float* products) {
  const int64_t inner = item.gate.ref.out, width = item.down.ref.out;
  for (int g = 0; g < item.n_groups(); ++g) {
    const int64_t row = item.first + int64_t{g} * kMaxGroup;
    const int in_group = std::min(kMaxGroup, item.n_rows() - g * kMaxGroup);
    const RowGroup group =
        item.down.plain != nullptr ? RowGroup{.n_rows = in_group} : act_rows_.Group(row, in_group);
    Outputs(item.down, first, n, group, act_.data() + row * inner, inner,
            products + row * width + first, width);
  }
}

void FastOps::RunMlps(std::span<const Item> items, int n_rows, int64_t width, const float* h,
                      float* products) {
  const int64_t inner = items.front().gate.ref.out;
  const int64_t all_rows = items.back().first + items.back().n_rows();
  const auto is_plain = [](const Item& item) { return item.down.plain != nullptr; };
  const bool any_tiled = std::ranges::any_of(items, [](const Item& item) {
    return item.gate.plain == nullptr || item.up.plain == nullptr;
  });
  if (any_tiled) {
    Quantize(n_rows, width, h, 1, &input_);
  } else {
    input_.Reshape(n_rows, 0, 1);
  }
  Gather(items, width, h);
  if (std::ranges::any_of(items, is_plain)) act_.resize(static_cast<size_t>(all_rows * inner));
  act_rows_.Reshape(all_rows, std::ranges::all_of(items, is_plain) ? 0 : inner, kMaxGroup);

  const auto n_items = static_cast<int64_t>(items.size());
  const int64_t n_blocks = (inner + kBlock - 1) / kBlock;
  parallel_.Each(n_items * n_blocks, [&](int64_t i) {
    GateAndUp(items[static_cast<size_t>(i / n_blocks)], i % n_blocks, width);
  });
  const int64_t n_pieces = (width + kDownOutputs - 1) / kDownOutputs;
  parallel_.Each(n_items * n_pieces, [&](int64_t i) {
    const int64_t first = i % n_pieces * kDownOutputs;
    Down(items[static_cast<size_t>(i / n_pieces)], first, std::min(kDownOutputs, width - first),
         products);
  });
}

void FastOps::Experts(int n_rows, int width, int top_k, const float* h,
                      std::span<const ExpertWork> work, const RouterChoice& choice, float* out) {
  const bool is_fast =
      std::ranges::all_of(work, [](const ExpertWork& item) { return HasFastForm(item.expert); });
  if (work.empty() || !is_fast) {
    return exact_.Experts(n_rows, width, top_k, h, work, choice, out);
  }
  items_.clear();
  const int64_t n_places = int64_t{n_rows} * top_k;
  place_rows_.assign(static_cast<size_t>(n_places), -1);
  int64_t first = 0;
  for (const ExpertWork& one : work) {
    items_.push_back({.gate = Prepare(one.expert.gate),
                      .up = Prepare(one.expert.up),
                      .down = Prepare(one.expert.down),
                      .rows = one.rows,
                      .first = first});
    for (const int32_t place : one.places) {
      place_rows_[static_cast<size_t>(place)] = static_cast<int32_t>(first++);
    }
  }
  products_.resize(static_cast<size_t>(first * width));
  RunMlps(items_, n_rows, width, h, products_.data());

  const auto combine = [&](int64_t t) {
    float* to = out + t * width;
    std::fill_n(to, width, 0.f);
    for (int64_t place = t * top_k; place < (t + 1) * top_k; ++place) {
      if (place_rows_[static_cast<size_t>(place)] < 0) continue;
      kernels_.add_scaled(
          choice.weights[static_cast<size_t>(place)],
          products_.data() + int64_t{place_rows_[static_cast<size_t>(place)]} * width, width, to);
    }
  };
  if (n_places * width < kInlineProducts) {
    for (int t = 0; t < n_rows; ++t) combine(t);
  } else {
    parallel_.Each(n_rows, combine);
  }
}

void FastOps::Mlp(const ExpertRef& mlp, int n_rows, const float* h, float* out) {
  if (!HasFastForm(mlp)) return exact_.Mlp(mlp, n_rows, h, out);
  for (auto row = static_cast<int32_t>(all_rows_.size()); row < n_rows; ++row) {
    all_rows_.push_back(row);
  }
  const Item item{.gate = Prepare(mlp.gate),
                  .up = Prepare(mlp.up),
                  .down = Prepare(mlp.down),
                  .rows = std::span(all_rows_).first(static_cast<size_t>(n_rows))};
  RunMlps({&item, 1}, n_rows, mlp.gate.in, h, out);
}

}  // namespace hearth::worker
