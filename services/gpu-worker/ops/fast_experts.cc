// The router's choice and the experts of the fast CPU backend.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "services/gpu-worker/ops/fast_ops.h"

namespace hearth::worker {
namespace {

// Outputs of down_proj that a thread takes at once.
constexpr int64_t kDownOutputs = 128;
constexpr int64_t kStripsABlock = kBlock / kTileRows;

// Experts at once for which their pieces are made small.
constexpr int64_t kFewItems = 64;

// Into the second-level cache: outputs [first, first + n) of a tiled matrix.
template <typename Weights>
void Prefetch(const Weights& weights, int64_t first, int64_t n) {
  if (weights.ref.kind != WeightKind::kTiled4) return;
  const int64_t tile_bytes = kTileRows * kTileColumns / 2;
  const int64_t strip_bytes = weights.matrix.n_tiles * tile_bytes;
  const uint8_t* begin = weights.matrix.data + first / kTileRows * strip_bytes;
  const uint8_t* end = begin + n / kTileRows * strip_bytes;
  for (const uint8_t* at = begin; at < end; at += 64) _mm_prefetch(at, _MM_HINT_T1);
}

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
    Activate(item, g, block, gate, up, kBlock);
  }
}

// act of a group's rows from its gate and up, whose rows are `stride` apart; gate is overwritten.
void FastOps::Activate(const Item& item, int group, int64_t block, float* gate, const float* up,
                       int64_t stride) {
  const int64_t inner = item.gate.ref.out, first = block * kBlock;
  const int64_t n = std::min<int64_t>(kBlock, inner - first);
  const int64_t row = item.first + int64_t{group} * kMaxGroup;
  const int in_group = std::min(kMaxGroup, item.n_rows() - group * kMaxGroup);
  for (int t = 0; t < in_group; ++t) {
    float* act = gate + t * stride;
    kernels_.silu_mul(act, up + t * stride, n, act);
    if (item.down.plain != nullptr) {
      std::copy_n(act, n, act_.data() + (row + t) * inner + first);
    } else {
      kernels_.quantize(act, kBlock, t, in_group, act_rows_.q(row) + block * in_group * kBlock,
                        act_rows_.scales(row) + block * in_group);
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

// Few experts, all of whose rows are one group: stages 1 and 2 as one loop over pieces so small
// that all threads have some. Who completes a block of gate and up makes its act; a piece of down
// waits for its expert's blocks, which threads that came before it are computing.
void FastOps::RunFewMlps(std::span<const Item> items, int64_t width, float* products) {
  const int64_t inner = items.front().gate.ref.out;
  const int64_t n_blocks = (inner + kBlock - 1) / kBlock, stride = n_blocks * kBlock;
  const auto n_items = static_cast<int64_t>(items.size());
  const auto all_rows = items.back().first + items.back().n_rows();
  // As large as leaves each thread four.
  const int64_t strips =
      std::clamp<int64_t>(n_items * n_blocks / parallel_.n_threads(), 1, kStripsABlock);
  const int64_t outputs = strips * kTileRows;
  const int64_t a_block = (kStripsABlock + strips - 1) / strips;  // pieces
  const int64_t n_first = n_items * n_blocks * a_block;
  const int64_t n_pieces = (width + kDownOutputs - 1) / kDownOutputs;
  gate_.resize(std::max(gate_.size(), static_cast<size_t>(all_rows * stride)));
  up_.resize(gate_.size());
  const auto n_counters = static_cast<size_t>(n_items * n_blocks);
  if (pieces_left_.size() < n_counters) {
    pieces_left_ = std::vector<std::atomic<int32_t>>(n_counters);
    blocks_left_ = std::vector<std::atomic<int32_t>>(n_counters);
  }
  for (size_t i = 0; i < n_counters; ++i) pieces_left_[i] = static_cast<int32_t>(a_block);
  for (int64_t i = 0; i < n_items; ++i) {
    blocks_left_[static_cast<size_t>(i)] = static_cast<int32_t>(n_blocks);
  }

  const auto gate_and_up = [&](int64_t i) {
    const int64_t of_block = i / a_block, first_of_block = of_block % n_blocks * kBlock;
    const Item& item = items[static_cast<size_t>(of_block / n_blocks)];
    const int64_t first = first_of_block + i % a_block * outputs;
    const int64_t n = std::min({outputs, first_of_block + kBlock - first, inner - first});
    const RowGroup group = gathered_.Group(item.first, item.n_rows());
    const float* x = gathered_floats_.data() + item.first * width;  // read by plain weights only
    float* gate = gate_.data() + item.first * stride;
    float* up = up_.data() + item.first * stride;
    if (n > 0) {
      Outputs(item.gate, first, n, group, x, width, gate + first, stride);
      Outputs(item.up, first, n, group, x, width, up + first, stride);
    }
    if (pieces_left_[static_cast<size_t>(of_block)].fetch_sub(1, std::memory_order_acq_rel) > 1) {
      return;
    }
    Activate(item, 0, of_block % n_blocks, gate + first_of_block, up + first_of_block, stride);
    blocks_left_[static_cast<size_t>(of_block / n_blocks)].fetch_sub(1, std::memory_order_release);
  };
  const auto down = [&](int64_t i) {
    const Item& item = items[static_cast<size_t>(i / n_pieces)];
    const int64_t first = i % n_pieces * kDownOutputs;
    const int64_t n = std::min(kDownOutputs, width - first);
    const std::atomic<int32_t>& left = blocks_left_[static_cast<size_t>(i / n_pieces)];
    if (left.load(std::memory_order_acquire) > 0) Prefetch(item.down, first, n);
    while (left.load(std::memory_order_acquire) > 0) {
      if (parallel_.interrupted()) return;  // the pieces that would complete it are skipped
      _mm_pause();
    }
    Down(item, first, n, products);
  };
  parallel_.Each(n_first + n_items * n_pieces, [&](int64_t i) {
    if (i < n_first) {
      gate_and_up(i);
    } else {
      down(i - n_first);
    }
  });
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
  if (n_items <= kFewItems &&
      std::ranges::all_of(items, [](const Item& item) { return item.n_groups() == 1; })) {
    return RunFewMlps(items, width, products);
  }
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
