// Experts of a few rows by threads that wait for each other: what a GPU asks of the CPU between two
// of its kernels, where microseconds count. Both stages are cut beforehand into equal shares of
// outputs, whatever expert they belong to, and one barrier stands between them.
#include <algorithm>

#include "services/gpu-worker/ops/fast_ops.h"

namespace hearth::worker {
namespace {

constexpr int64_t kOutputs = 2 * kTileRows;  // of a piece
constexpr int64_t kMaxInner = 2048;          // of act, rounded on the stack of each thread
constexpr int64_t kMaxItems = 128;           // more is work for ParallelFor

// Pieces [begin, end) of `n` that belong to thread `t`.
struct Share {
  int64_t begin, end;
};
Share ShareOf(int64_t n, int t, int n_threads) {
  return {n * t / n_threads, n * (t + 1) / n_threads};
}

}  // namespace

bool FastOps::IsTeamWork(std::span<const Item> items) const {
  return parallel_.n_threads() > 1 && static_cast<int64_t>(items.size()) <= kMaxItems &&
         std::ranges::all_of(items, [](const Item& item) {
           return item.gate.plain == nullptr && item.up.plain == nullptr &&
                  item.down.plain == nullptr && item.n_rows() <= kMaxGroup &&
                  item.gate.ref.out % kBlock == 0 && item.gate.ref.out <= kMaxInner;
         });
}

// act = silu(gate h) * up h, outputs [first, first + kOutputs).
void FastOps::TeamGateAndUp(const Item& item, int64_t first) {
  const int64_t inner = item.gate.ref.out;
  const RowGroup group = gathered_.Group(item.first, item.n_rows());
  alignas(64) float gate[kMaxGroup * kOutputs], up[kMaxGroup * kOutputs];
  Outputs(item.gate, first, kOutputs, group, nullptr, 0, gate, kOutputs);
  Outputs(item.up, first, kOutputs, group, nullptr, 0, up, kOutputs);
  for (int t = 0; t < item.n_rows(); ++t) {
    kernels_.silu_mul(gate + t * kOutputs, up + t * kOutputs, kOutputs,
                      act_.data() + (item.first + t) * inner + first);
  }
}

void FastOps::TeamDown(const Item& item, int64_t first, int64_t n, const RowGroup& act,
                       float* products) {
  const int64_t width = item.down.ref.out;
  Outputs(item.down, first, n, act, nullptr, 0, products + item.first * width + first, width);
}

void FastOps::RunMlpsTogether(std::span<const Item> items, int64_t width, float* products) {
  const int64_t inner = items.front().gate.ref.out;
  const auto n_items = static_cast<int64_t>(items.size());
  const int64_t all_rows = items.back().first + items.back().n_rows();
  act_.resize(static_cast<size_t>(all_rows * inner));
  const int n_threads = parallel_.n_threads();
  const int64_t ups = inner / kOutputs, downs = (width + kOutputs - 1) / kOutputs;
  TeamBarrier barrier(n_threads);
  parallel_.Together([&](int thread) {
    const Share first = ShareOf(n_items * ups, thread, n_threads);
    for (int64_t i = first.begin; i < first.end; ++i) {
      TeamGateAndUp(items[static_cast<size_t>(i / ups)], i % ups * kOutputs);
    }
    barrier.Meet();
    // Each thread rounds the act of its experts for itself: cheaper than one more meeting.
    alignas(64) int8_t q[kMaxGroup * kMaxInner];
    BlockScale scales[kMaxGroup * kMaxInner / kBlock];
    const Share second = ShareOf(n_items * downs, thread, n_threads);
    for (int64_t i = second.begin; i < second.end; ++i) {
      const Item& item = items[static_cast<size_t>(i / downs)];
      if (i == second.begin || i % downs == 0) {
        for (int t = 0; t < item.n_rows(); ++t) {
          kernels_.quantize(act_.data() + (item.first + t) * inner, inner, t, item.n_rows(), q,
                            scales);
        }
      }
      const int64_t at = i % downs * kOutputs;
      TeamDown(item, at, std::min(kOutputs, width - at), {q, scales, item.n_rows()}, products);
    }
  });
}

}  // namespace hearth::worker
