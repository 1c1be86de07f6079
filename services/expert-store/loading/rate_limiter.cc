#include "services/expert-store/loading/rate_limiter.h"

#include <algorithm>

namespace hearth::store {

bool RateLimiter::Acquire(uint64_t bytes, std::stop_token stop) {
  if (rate_ == 0) return !stop.stop_requested();
  using Seconds = std::chrono::duration<double>;
  std::unique_lock lock(mutex_);
  const auto start = std::max(next_, std::chrono::steady_clock::now());
  next_ = start + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                      Seconds(static_cast<double>(bytes) / static_cast<double>(rate_)));
  stopped_.wait_until(lock, stop, start, [] { return false; });
  return !stop.stop_requested();
}

}  // namespace hearth::store
