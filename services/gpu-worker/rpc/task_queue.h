// A few threads for work that is too long for gRPC's own (templates, tokenization), with a bounded
// queue before them.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace hearth::worker {

class TaskQueue {
 public:
  TaskQueue(int n_threads, size_t limit);
  // Runs what was accepted, then joins.
  ~TaskQueue();

  // False, and nothing happens, when `limit` tasks wait.
  bool TryAdd(std::function<void()> task);

 private:
  void Run();

  const size_t limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_
  bool stopping_ = false;                    // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace hearth::worker
