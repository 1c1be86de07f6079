// Decides from probe results that a child hangs. Used by the watchdog, one per child. Pure: the
// time is an argument.
//
// A single late answer on a loaded machine is no hang, and neither is a child that still starts.
#pragma once

#include <chrono>

namespace hearth::cli {

struct HangLimits {
  std::chrono::milliseconds silence{5000};   // without a good answer ...
  int min_failures = 3;                      // ... over at least so many probes
  std::chrono::milliseconds start{60000};    // until the first good answer after a start
  std::chrono::milliseconds interval{1000};  // between the beginnings of two probes
  // The same before the first good answer: what hangs right after its start shall have answered.
  std::chrono::milliseconds start_interval{100};
  std::chrono::milliseconds timeout{1500};  // of one probe
};

class HangDetector {
 public:
  using Clock = std::chrono::steady_clock;

  explicit HangDetector(const HangLimits& limits) : limits_(limits) {}

  void OnStart(Clock::time_point now);
  // Whether this result means that the child hangs.
  bool OnProbe(bool is_good, Clock::time_point now);
  // The wait between the beginnings of this probe and the next.
  std::chrono::milliseconds Interval() const {
    return has_answered_ ? limits_.interval : limits_.start_interval;
  }
  Clock::duration Silence(Clock::time_point now) const { return now - last_good_; }

 private:
  HangLimits limits_;
  Clock::time_point last_good_;  // or the start
  bool has_answered_ = false;
  int n_failures_ = 0;
};

}  // namespace hearth::cli
