// The watchdog's thread with probes that this test answers.
#include "cli/supervisor/watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace hearth::cli {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

// A child that hangs a moment after it began to serve must not get the patience of a start.
TEST(Watchdog, NoticesSoonThatAStartedChildAnswers) {
  HangLimits limits{.silence = milliseconds(0), .min_failures = 2, .start = hours(1)};
  limits.interval = milliseconds(10);
  limits.start_interval = milliseconds(1);
  std::atomic<int> n_probes = 0;
  std::promise<uint64_t> hung;
  const auto probe = [&](milliseconds) {
    return ++n_probes == 4 ? absl::OkStatus() : absl::UnavailableError("");
  };
  Watchdog watchdog(probe, limits,
                    [&](uint64_t incarnation, const std::string&) { hung.set_value(incarnation); });
  watchdog.Watch(7);
  auto future = hung.get_future();
  ASSERT_EQ(future.wait_for(seconds(20)), std::future_status::ready);
  EXPECT_EQ(future.get(), 7u);
  EXPECT_EQ(n_probes, 6) << "three before it serves, the good one, and two bad ones";
}

TEST(Watchdog, AsksAtTheStartsIntervalUntilTheFirstAnswer) {
  HangLimits limits;
  limits.interval = hours(1);
  limits.start_interval = milliseconds(1);
  std::promise<void> asked;
  std::atomic<int> n_probes = 0;
  const auto probe = [&](milliseconds) {
    if (++n_probes == 3) asked.set_value();
    return absl::UnavailableError("");
  };
  Watchdog watchdog(probe, limits, [](uint64_t, const std::string&) {});
  watchdog.Watch(1);
  EXPECT_EQ(asked.get_future().wait_for(seconds(20)), std::future_status::ready);
}

}  // namespace
}  // namespace hearth::cli
