// Keeps a stream of bytes under a rate: loading beside other users of a disk, verification beside a
// worker that needs the memory's bandwidth. Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>

namespace hearth::store {

class RateLimiter {
 public:
  // 0: no limit.
  explicit RateLimiter(uint64_t bytes_per_second) : rate_(bytes_per_second) {}

  // Returns when `bytes` may be taken, counting all that was taken before; false when `stop` was
  // requested first.
  bool Acquire(uint64_t bytes, std::stop_token stop);

 private:
  const uint64_t rate_;
  std::mutex mutex_;
  std::condition_variable_any stopped_;
  std::chrono::steady_clock::time_point next_{};  // when the bytes taken so far are paid for
};

}  // namespace hearth::store
