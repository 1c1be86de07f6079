// When a child that died is started again, and when to give up. Used by the supervisor, one per
// child. Pure: the time is an argument.
#pragma once

#include <chrono>
#include <deque>
#include <optional>

namespace hearth::cli {

class RestartPolicy {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr int kMaxRestarts = 5;
  static constexpr std::chrono::seconds kWindow{60};

  // The wait before the next start: 0.1 s, doubled for each restart within the last minute, at most
  // 5 s. Nothing when the child was restarted kMaxRestarts times within the window: give up.
  std::optional<std::chrono::milliseconds> OnDeath(Clock::time_point now);

 private:
  std::deque<Clock::time_point> restarts_;
};

}  // namespace hearth::cli
