#include "cli/supervisor/hang_detector.h"

namespace hearth::cli {

void HangDetector::OnStart(Clock::time_point now) {
  last_good_ = now;
  has_answered_ = false;
  n_failures_ = 0;
}

bool HangDetector::OnProbe(bool is_good, Clock::time_point now) {
  if (is_good) {
    last_good_ = now;
    has_answered_ = true;
    n_failures_ = 0;
    return false;
  }
  ++n_failures_;
  const auto limit = has_answered_ ? limits_.silence : limits_.start;
  return n_failures_ >= limits_.min_failures && Silence(now) >= limit;
}

}  // namespace hearth::cli
