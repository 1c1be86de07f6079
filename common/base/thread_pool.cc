#include "common/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace hearth {

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable start, done;
  const std::function<void(int)>* body = nullptr;  // of the loop that runs; guarded by mutex
  int n = 0;                                       // guarded by mutex
  uint64_t generation = 0;                         // guarded by mutex; counts loops
  int n_working = 0;                               // guarded by mutex; pool threads inside the loop
  bool stop = false;                               // guarded by mutex
  std::atomic<int> next{0};
  std::vector<std::thread> threads;

  void Drain(const std::function<void(int)>& work, int count) {
    for (int i = next.fetch_add(1); i < count; i = next.fetch_add(1)) work(i);
  }

  void Run() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      start.wait(lock, [&] { return stop || (generation != seen && body != nullptr); });
      if (stop) return;
      seen = generation;
      ++n_working;
      const auto* work = body;
      const int count = n;
      lock.unlock();
      Drain(*work, count);
      lock.lock();
      if (--n_working == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int n_threads) : state_(std::make_unique<State>()) {
  for (int i = 1; i < n_threads; ++i) {
    state_->threads.emplace_back([state = state_.get()] { state->Run(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->start.notify_all();
  for (auto& thread : state_->threads) thread.join();
}

int ThreadPool::n_threads() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::ParallelFor(int n, const std::function<void(int)>& body) {
  if (n <= 0) return;
  if (n == 1 || state_->threads.empty()) {
    for (int i = 0; i < n; ++i) body(i);
    return;
  }
  {
    const std::lock_guard lock(state_->mutex);
    state_->body = &body;
    state_->n = n;
    state_->next = 0;
    ++state_->generation;
  }
  state_->start.notify_all();
  state_->Drain(body, n);
  // A thread that wakes late finds body == nullptr and goes on waiting.
  std::unique_lock lock(state_->mutex);
  state_->body = nullptr;
  state_->done.wait(lock, [&] { return state_->n_working == 0; });
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = ::sched_getaffinity(0, sizeof set, &set) == 0
                  ? CPU_COUNT(&set)
                  : static_cast<int>(std::thread::hardware_concurrency());
  // cgroup v2: "quota period" or "max period"; cgroup v1: two files.
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) {
    cores = std::min(cores, std::max(1, static_cast<int>(std::stod(quota) / period + 0.5)));
  }
  std::ifstream quota_v1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_v1("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota_us = 0, period_us = 0;
  if (quota_v1 >> quota_us && period_v1 >> period_us && quota_us > 0 && period_us > 0) {
    cores = std::min(cores, std::max(1, static_cast<int>(quota_us / period_us + 0.5)));
  }
  return std::max(1, cores);
}

}  // namespace hearth
