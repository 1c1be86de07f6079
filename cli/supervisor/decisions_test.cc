// The supervisor's decisions without processes: when to restart, when to give up, what is a hang.
#include <gtest/gtest.h>

#include "cli/supervisor/cluster.h"
#include "cli/supervisor/hang_detector.h"
#include "cli/supervisor/readiness.h"
#include "cli/supervisor/restart_policy.h"

namespace hearth::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

TEST(LoadingText, SaysWhatTheStoreDoesBeforeItKnowsHowMuchThereIs) {
  v1::LoadingProgress loading;
  loading.set_message("reading the checkpoint's headers");
  EXPECT_EQ(LoadingText(loading), "reading the checkpoint's headers");
  loading.set_bytes_total(3 << 20);
  loading.set_bytes_done(1 << 20);
  EXPECT_EQ(LoadingText(loading), "loading experts: 1.0 MiB of 3.0 MiB");
  loading.set_adopted(true);
  EXPECT_EQ(LoadingText(loading), "checking experts kept in memory: 1.0 MiB of 3.0 MiB");
}

TEST(RestartPolicy, DelayDoublesFromATenthOfASecond) {
  RestartPolicy policy;
  const Clock::time_point now;
  for (const int expected_ms : {100, 200, 400, 800, 1600}) {
    EXPECT_EQ(policy.OnDeath(now), milliseconds(expected_ms));
  }
}

TEST(RestartPolicy, GivesUpAtTheSixthDeathWithinAMinute) {
  RestartPolicy policy;
  const Clock::time_point now;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(policy.OnDeath(now + seconds(i)).has_value());
  EXPECT_FALSE(policy.OnDeath(now + seconds(59)).has_value());
}

TEST(RestartPolicy, ForgetsRestartsAfterAMinute) {
  RestartPolicy policy;
  const Clock::time_point now;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(policy.OnDeath(now).has_value());
  EXPECT_EQ(policy.OnDeath(now + seconds(60)), milliseconds(100));
}

TEST(HangDetector, ReportsSilenceAfterGoodAnswers) {
  HangDetector detector({});
  const Clock::time_point start;
  detector.OnStart(start);
  EXPECT_FALSE(detector.OnProbe(true, start + seconds(10)));
  EXPECT_FALSE(detector.OnProbe(false, start + seconds(12)));
  EXPECT_FALSE(detector.OnProbe(false, start + milliseconds(14999)));
  EXPECT_TRUE(detector.OnProbe(false, start + seconds(15)));
}

TEST(HangDetector, OneLateAnswerIsNoHang) {
  HangDetector detector({});
  const Clock::time_point start;
  detector.OnStart(start);
  EXPECT_FALSE(detector.OnProbe(true, start));
  // This machine was suspended: a long silence, but a single failed probe.
  EXPECT_FALSE(detector.OnProbe(false, start + seconds(100)));
  EXPECT_FALSE(detector.OnProbe(true, start + seconds(101)));
  EXPECT_FALSE(detector.OnProbe(false, start + seconds(102)));
}

TEST(HangDetector, AsksMoreOftenUntilTheFirstGoodAnswer) {
  HangDetector detector({});
  const Clock::time_point start;
  for (int i = 0; i < 2; ++i) {
    detector.OnStart(start);
    EXPECT_EQ(detector.Interval(), milliseconds(100));
    detector.OnProbe(false, start);
    EXPECT_EQ(detector.Interval(), milliseconds(100));
    detector.OnProbe(true, start);
    EXPECT_EQ(detector.Interval(), seconds(1));
    detector.OnProbe(false, start);
    EXPECT_EQ(detector.Interval(), seconds(1));
  }
}

TEST(HangDetector, AStartMayTakeAMinute) {
  HangDetector detector({});
  const Clock::time_point start;
  detector.OnStart(start);
  for (int second = 1; second < 60; ++second) {
    ASSERT_FALSE(detector.OnProbe(false, start + seconds(second)));
  }
  EXPECT_TRUE(detector.OnProbe(false, start + seconds(60)));
}

TEST(ServiceCommand, HandsEachServiceItsOwnFlags) {
  ClusterOptions options;
  options.model = "/m";
  options.run_dir = "/r";
  options.segment = "/s";
  options.bin_dir = "/b";
  options.worker_flags = {"--context", "100"};
  using Words = std::vector<std::string>;
  EXPECT_EQ(ServiceCommand(options, kStore, 1),
            (Words{"/b/hearth-expert-store", "--run-dir", "/r", "--grace-seconds", "5", "--model",
                   "/m", "--segment", "/s"}));
  EXPECT_EQ(ServiceCommand(options, kWorker, 1),
            (Words{"/b/hearth-gpu-worker", "--run-dir", "/r", "--grace-seconds", "5", "--model",
                   "/m", "--context", "100"}));
  EXPECT_EQ(ServiceCommand(options, kGateway, 99),
            (Words{"/b/hearth-gateway", "--run-dir", "/r", "--grace-seconds", "5", "--listen",
                   "127.0.0.1:99"}));
  options.host = "::1";
  EXPECT_EQ(ServiceCommand(options, kGateway, 99).back(), "[::1]:99");
}

TEST(ServiceCommand, MetricsListenBesideTheGateway) {
  ClusterOptions options;
  options.port = 9000;
  options.expose_metrics = true;
  const auto command = ServiceCommand(options, kStore, 9000);
  EXPECT_NE(std::find(command.begin(), command.end(), "127.0.0.1:9002"), command.end());
}

}  // namespace
}  // namespace hearth::cli
