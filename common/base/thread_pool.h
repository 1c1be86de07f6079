// A fixed set of threads that run one loop at a time. A thread that has nothing to do spins for a
// little while, so that the loops of a token, a few microseconds apart, need no waking; then it
// parks until the next loop.
//
// Thread rule: ParallelFor and Together may be called from one thread at a time; bodies must not
// call them again.
#pragma once

#include <atomic>
#include <cstdint>
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

  // Runs body(t) once on every thread, t < n_threads() (the caller is 0), at the same time, so that
  // they may wait for each other (TeamBarrier). A microsecond cheaper than ParallelFor for many
  // threads, since they share no counter; but a core that was taken away from one of them keeps all
  // waiting: for threads that have the machine's cores to themselves.
  void Together(IndexBody body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Where the threads of one Together meet, as often as they like.
class TeamBarrier {
 public:
  explicit TeamBarrier(int n_threads) : n_threads_(n_threads) {}
  // Returns once all have arrived; what they wrote before is visible then.
  void Meet();

 private:
  const int n_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> meetings_{0};
};

// Of this thread and those that it starts from now on. Never more urgent than before.
void SetThisThreadsNiceness(int niceness);

// Cores that this process may use: its affinity mask and its cgroup quota, at least 1.
int UsableCores();

}  // namespace hearth
