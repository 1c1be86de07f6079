#include "cli/supervisor/restart_policy.h"

#include <algorithm>

namespace hearth::cli {

std::optional<std::chrono::milliseconds> RestartPolicy::OnDeath(Clock::time_point now) {
  while (!restarts_.empty() && now - restarts_.front() >= kWindow) restarts_.pop_front();
  if (restarts_.size() >= kMaxRestarts) return std::nullopt;
  const int n_recent = static_cast<int>(restarts_.size());
  restarts_.push_back(now);
  return std::min(std::chrono::milliseconds(100 << n_recent), std::chrono::milliseconds(5000));
}

}  // namespace hearth::cli
