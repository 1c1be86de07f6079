#include "cli/supervisor/watchdog.h"

#include <utility>

#include "absl/strings/str_format.h"

namespace hearth::cli {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

Watchdog::Watchdog(Probe probe, const HangLimits& limits, OnHang on_hang)
    : probe_(std::move(probe)),
      limits_(limits),
      on_hang_(std::move(on_hang)),
      detector_(limits),
      thread_([this] { Run(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watchdog::Watch(uint64_t incarnation) {
  {
    const std::lock_guard lock(mutex_);
    incarnation_ = incarnation;
    is_watching_ = true;
    detector_.OnStart(Clock::now());
  }
  changed_.notify_all();
}

void Watchdog::Pause() {
  const std::lock_guard lock(mutex_);
  is_watching_ = false;
}

bool Watchdog::WaitForTurn(Clock::time_point turn) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, turn, [this] { return is_ending_; });
  changed_.wait(lock, [this] { return is_ending_ || is_watching_; });
  return !is_ending_;
}

void Watchdog::Run() {
  Clock::time_point turn = Clock::now();
  while (WaitForTurn(turn)) {
    uint64_t incarnation = 0;
    {
      const std::lock_guard lock(mutex_);
      incarnation = incarnation_;
      turn = Clock::now() + detector_.Interval();
    }
    const absl::Status answer = probe_(limits_.timeout);
    Judge(incarnation, answer);
  }
}

void Watchdog::Judge(uint64_t incarnation, const absl::Status& answer) {
  std::string reason;
  {
    const std::lock_guard lock(mutex_);
    // The answer may be about a child that has been replaced meanwhile.
    if (!is_watching_ || incarnation != incarnation_) return;
    const auto now = Clock::now();
    if (!detector_.OnProbe(answer.ok(), now)) return;
    is_watching_ = false;
    reason = absl::StrFormat("no good answer for %.1f s (%s)",
                             std::chrono::duration<double>(detector_.Silence(now)).count(),
                             std::string(answer.message()));
  }
  on_hang_(incarnation, reason);
}

}  // namespace hearth::cli
