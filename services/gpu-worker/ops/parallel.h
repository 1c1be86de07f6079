// How the CPU ops share their work: a thread pool, the step's progress counter and its interrupt
// flag.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "common/base/thread_pool.h"

namespace hearth::worker {

class Parallel {
 public:
  explicit Parallel(int n_threads) : pool_(n_threads) {}
  explicit Parallel(const ThreadPoolOptions& options) : pool_(options) {}

  int n_threads() const { return pool_.n_threads(); }

  // Runs body(begin, end) over pieces of [0, n) of at most `piece` items. Work below kInlineWork
  // operations in all stays on the caller, where waking a thread (10 us) would cost more than it
  // brings. Once interrupted, pieces are skipped.
  template <typename Body>
  void For(int64_t n, int64_t piece, int64_t operations_per_item, const Body& body) {
    if (n <= 0) return;
    if (pool_.n_threads() == 1 || n * operations_per_item < kInlineWork) piece = n;
    const auto pieces = static_cast<int>((n + piece - 1) / piece);
    pool_.ParallelFor(pieces, [&](int i) {
      if (interrupted_.load(std::memory_order_relaxed)) return;
      const int64_t begin = i * piece;
      body(begin, begin + piece < n ? begin + piece : n);
      progress_.fetch_add(1, std::memory_order_relaxed);
    });
  }

  // Runs body(i) for every i of [0, n), one by one from a shared counter: for pieces that are worth
  // a loop (20 us in all). Once interrupted, the rest is skipped.
  template <typename Body>
  void Each(int64_t n, const Body& body) {
    pool_.ParallelFor(static_cast<int>(n), [&](int i) {
      if (interrupted_.load(std::memory_order_relaxed)) return;
      body(int64_t{i});
      if (i % kPiecesASign == 0) progress_.fetch_add(1, std::memory_order_relaxed);
    });
  }

  uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }
  bool interrupted() const { return interrupted_.load(std::memory_order_relaxed); }
  void set_interrupted(bool value) { interrupted_.store(value, std::memory_order_relaxed); }

 private:
  static constexpr int64_t kInlineWork = 100'000;

  // Signs of life are written by all threads: not with each small piece.
  static constexpr int kPiecesASign = 8;

  ThreadPool pool_;
  alignas(64) std::atomic<uint64_t> progress_{0};
  alignas(64) std::atomic<bool> interrupted_{false};
};

}  // namespace hearth::worker
