// A fixed set of threads that run one loop at a time. A thread that has nothing to do spins for a
// little while, so that the loops of a token, a few microseconds apart, need no waking; then it
// parks until the next loop.
//
// Thread rule: ParallelFor may be called from one thread at a time; bodies must not call it again.
#pragma once

#include <memory>

namespace hearth {

// A borrowed callable void(int). The callable must outlive the calls.
class IndexBody {
 public:
  template <typename Body>
  IndexBody(const Body& body)  // NOLINT(google-explicit-constructor): a parameter type
      : object_(&body),
        call_([](const void* object, int i) { (*static_cast<const Body*>(object))(i); }) {}
  void operator()(int i) const { call_(object_, i); }

 private:
  const void* object_;
  void (*call_)(const void*, int);
};

struct ThreadPoolOptions {
  int n_threads = 1;  // >= 1, counts the calling thread: 1 runs everything on the caller
  // How long an idle thread spins before it parks. 0: at once, for loops of long bodies.
  int spin_microseconds = 0;
  // Ties each thread but the caller's to a core of its own, where there are enough: one of each
  // physical core before any second one, spread over the memory nodes.
  bool pin = false;
};

class ThreadPool {
 public:
  explicit ThreadPool(const ThreadPoolOptions& options);
  explicit ThreadPool(int n_threads) : ThreadPool(ThreadPoolOptions{.n_threads = n_threads}) {}
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const;

  // Runs body(i) for every i of [0, n), each once, in any order, and returns when all are done.
  void ParallelFor(int n, IndexBody body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Of this thread and those that it starts from now on. Never more urgent than before.
void SetThisThreadsNiceness(int niceness);

// Cores that this process may use: its affinity mask and its cgroup quota, at least 1.
int UsableCores();

}  // namespace hearth
