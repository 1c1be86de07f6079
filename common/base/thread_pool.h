// A fixed set of threads that run one loop at a time, for loops whose body is long (milliseconds)
// or whose latency is not on a token's path.
//
// Thread rule: ParallelFor may be called from one thread at a time; bodies must not call it again.
#pragma once

#include <functional>
#include <memory>

namespace hearth {

class ThreadPool {
 public:
  // `n_threads` >= 1 counts the calling thread: 1 runs everything on the caller.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const;

  // Runs body(i) for every i of [0, n), each once, in any order, and returns when all are done.
  void ParallelFor(int n, const std::function<void(int)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Cores that this process may use: its affinity mask and its cgroup quota, at least 1.
int UsableCores();

}  // namespace hearth
