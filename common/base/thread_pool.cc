#include "common/base/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/numa.h"

namespace hearth {
namespace {

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void PinTo(std::thread& thread, int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  // Refused where the mask changed meanwhile: the thread then runs unpinned.
  (void)::pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);
}

}  // namespace

// A loop is open while its indices are being handed out. A thread enters by saying so in a place of
// its own and then looking whether the loop is still open; the caller closes the loop and then
// looks at all places: one of the two sees the other (both orders are sequentially consistent). So
// a thread that wakes late finds the next loop or none, the caller returns when all who entered
// have left, and no counter is fought for but that of the indices.
struct ThreadPool::State {
  struct alignas(64) Place {
    std::atomic<bool> is_inside{false};
  };

  explicit State(const ThreadPoolOptions& options)
      : spin(std::chrono::microseconds(options.spin_microseconds)),
        places(static_cast<size_t>(options.n_threads)) {}

  // Written between loops by the caller; read by those who entered.
  std::optional<IndexBody> body;
  int n = 0;
  alignas(64) std::atomic<int> next{0};
  alignas(64) std::atomic<bool> is_open{false};
  alignas(64) std::atomic<uint32_t> loops{0};  // grows with each loop and at the stop; waited on
  std::atomic<int> n_parked{0};
  std::atomic<bool> stop{false};
  const std::chrono::microseconds spin;
  std::vector<Place> places;
  std::vector<std::thread> threads;

  void Drain() {
    for (int i = next.fetch_add(1, std::memory_order_relaxed); i < n;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      (*body)(i);
    }
  }

  // Until `loops` differs from `seen`: spinning first, then parked.
  void AwaitNext(uint32_t seen) {
    const auto end = std::chrono::steady_clock::now() + spin;
    while (loops.load(std::memory_order_acquire) == seen) {
      for (int i = 0; i < 64 && loops.load(std::memory_order_relaxed) == seen; ++i) Pause();
      if (std::chrono::steady_clock::now() < end) continue;
      n_parked.fetch_add(1);
      loops.wait(seen);
      n_parked.fetch_sub(1);
    }
  }

  void Run(Place& place) {
    uint32_t seen = 0;
    while (true) {
      AwaitNext(seen);
      seen = loops.load(std::memory_order_acquire);
      if (stop.load()) return;
      place.is_inside.store(true);
      if (is_open.load()) Drain();
      place.is_inside.store(false, std::memory_order_release);
    }
  }

  // Those who entered are at their last index: microseconds in a token's loops, and a core that was
  // taken away from one of them is given time by yielding.
  void AwaitLeft() {
    int i = 0;
    for (const Place& place : places) {
      for (; place.is_inside.load(); ++i) {
        if (i < 4096) {
          Pause();
        } else {
          std::this_thread::yield();
        }
      }
    }
  }

  void Announce() {
    loops.fetch_add(1);
    if (n_parked.load() > 0) loops.notify_all();
  }
};

ThreadPool::ThreadPool(const ThreadPoolOptions& options)
    : state_(std::make_unique<State>(options)) {
  // The first core is left to the thread that calls ParallelFor.
  const std::vector<int> cores =
      options.pin ? PinningOrder(ReadPlaces(AllowedCores())) : std::vector<int>();
  for (int i = 1; i < options.n_threads; ++i) {
    auto& thread = state_->threads.emplace_back(
        [state = state_.get(), i] { state->Run(state->places[static_cast<size_t>(i)]); });
    if (options.pin && options.n_threads <= static_cast<int>(cores.size())) {
      PinTo(thread, cores[static_cast<size_t>(i)]);
    }
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true);
  state_->loops.fetch_add(1);
  state_->loops.notify_all();
  for (auto& thread : state_->threads) thread.join();
}

int ThreadPool::n_threads() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::ParallelFor(int n, IndexBody body) {
  if (n <= 0) return;
  if (n == 1 || state_->threads.empty()) {
    for (int i = 0; i < n; ++i) body(i);
    return;
  }
  state_->body.emplace(body);
  state_->n = n;
  state_->next.store(0, std::memory_order_relaxed);
  state_->is_open.store(true);
  state_->Announce();
  state_->Drain();
  state_->is_open.store(false);
  state_->AwaitLeft();
}

void SetThisThreadsNiceness(int niceness) {
  const auto thread = static_cast<id_t>(::syscall(SYS_gettid));
  if (::getpriority(PRIO_PROCESS, thread) >= niceness) return;
  ::setpriority(PRIO_PROCESS, thread, niceness);
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
