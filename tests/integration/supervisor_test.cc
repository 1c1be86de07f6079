// The supervisor over real processes that stand in for the services (fake_cluster.cc).
#include "cli/supervisor/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/supervisor/http_get.h"
#include "cli/supervisor/run_dir.h"
#include "common/base/file.h"
#include "common/rpc/health.h"
#include "common/testing/status_matchers.h"

namespace hearth::cli {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

class SupervisorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    run_dir_ = std::filesystem::temp_directory_path() / absl::StrCat("hearth-sup-", ::getpid());
    std::filesystem::remove_all(run_dir_);
    std::filesystem::create_directories(run_dir_ / "bin");
    std::filesystem::permissions(run_dir_, std::filesystem::perms::owner_all);
    for (const char* name : kServiceNames) {
      std::filesystem::create_symlink(FAKE_CLUSTER,
                                      run_dir_ / "bin" / absl::StrCat("hearth-", name));
    }
  }
  void TearDown() override {
    supervisor_ = Child();
    std::filesystem::remove_all(run_dir_);
  }

  static Child StartSupervisor(const std::filesystem::path& run_dir) {
    auto child = Child::Start(
        {.name = "supervisor",
         .argv = {FAKE_CLUSTER, "supervise", run_dir.string(), (run_dir / "bin").string(), "0"}});
    EXPECT_OK(child);
    return *std::move(child);
  }
  void Start() { supervisor_ = StartSupervisor(run_dir_); }

  void Tell(const std::string& service, const std::string& what) {
    std::ofstream(run_dir_ / absl::StrCat("hearth-", service, ".does")) << what;
  }

  // Reads what the supervisor writes, so that it never blocks.
  bool WaitFor(const std::function<bool()>& condition, seconds limit = seconds(20)) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (true) {
      char buffer[4096];
      ssize_t n = 0;
      while ((n = ::read(supervisor_.output(), buffer, sizeof buffer)) > 0) {
        log_.append(buffer, static_cast<size_t>(n));
      }
      if (condition()) return true;
      if (std::chrono::steady_clock::now() > deadline) return false;
      ::poll(nullptr, 0, 5);
    }
  }
  bool WaitForLog(const std::string& text) {
    return WaitFor([&] { return log_.find(text) != std::string::npos; });
  }
  // Its raw wait status.
  int WaitForEnd() {
    std::optional<int> status;
    EXPECT_TRUE(WaitFor([&] { return (status = supervisor_.Reap()).has_value(); })) << log_;
    WaitFor([] { return true; });
    return status.value_or(-1);
  }

  pid_t PidOf(const std::string& service) {
    const auto text = ReadFile(run_dir_ / absl::StrCat("hearth-", service, ".pid"), 64);
    int pid = -1;
    return text.ok() && absl::SimpleAtoi(*text, &pid) ? pid : -1;
  }
  bool Answers(const std::string& service) {
    constexpr std::chrono::milliseconds kTimeout{300};
    if (service == "gpu-worker") return ProbeHealth(WorkerAddress(run_dir_), "", kTimeout).ok();
    if (service == "expert-store") return ProbeHealth(StoreAddress(run_dir_), "", kTimeout).ok();
    const auto port = ReadGatewayPort(run_dir_);
    return port && HttpGet("127.0.0.1", *port, "/health", kTimeout).ok();
  }
  bool AllAnswer() {
    return Answers("expert-store") && Answers("gpu-worker") && Answers("gateway");
  }

  std::filesystem::path run_dir_;
  Child supervisor_;
  std::string log_;
};

TEST_F(SupervisorTest, StopsGatewayThenWorkerThenStoreAndExitsWithZero) {
  Start();
  ASSERT_TRUE(WaitFor([&] { return AllAnswer(); })) << log_;
  std::ofstream(run_dir_ / "segment") << "experts";
  supervisor_.Signal(SIGTERM);
  EXPECT_EQ(WaitForEnd(), 0) << log_;
  EXPECT_EQ(ReadFile(run_dir_ / "stopped", 256).value_or(""),
            "hearth-gateway\nhearth-gpu-worker\nhearth-expert-store\n");
  EXPECT_FALSE(std::filesystem::exists(run_dir_ / "segment"));
}

TEST_F(SupervisorTest, RestartsWhatWasKilled) {
  Start();
  for (const std::string service : {"expert-store", "gpu-worker", "gateway"}) {
    ASSERT_TRUE(WaitFor([&] { return AllAnswer(); })) << log_;
    const auto port = ReadGatewayPort(run_dir_);
    const pid_t pid = PidOf(service);
    ::kill(pid, SIGKILL);
    ASSERT_TRUE(WaitFor([&] { return PidOf(service) != pid && AllAnswer(); })) << log_;
    EXPECT_EQ(ReadGatewayPort(run_dir_), port) << "clients know the port";
  }
  EXPECT_THAT(log_, HasSubstr("killed by signal 9"));
}

TEST_F(SupervisorTest, KillsAndRestartsWhatIsStopped) {
  Start();
  for (const std::string service : {"expert-store", "gpu-worker", "gateway"}) {
    ASSERT_TRUE(WaitFor([&] { return AllAnswer(); })) << log_;
    // Hang limits are shorter only after a first answer to the supervisor's own probe.
    const pid_t pid = PidOf(service);
    ::kill(pid, SIGSTOP);
    ASSERT_TRUE(WaitFor([&] { return PidOf(service) != pid && AllAnswer(); })) << log_;
  }
  EXPECT_THAT(log_, HasSubstr("hangs"));
}

TEST_F(SupervisorTest, AServiceThatNeverAnswersIsHungOnceItsStartTimeIsOver) {
  Tell("gpu-worker", "deaf");
  Start();
  ASSERT_TRUE(WaitForLog("service hangs")) << log_;
}

TEST_F(SupervisorTest, ExitCodeTwoStopsEverythingAtOnceWithTheReason) {
  Tell("gpu-worker", "refuse");
  Start();
  const int status = WaitForEnd();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 2);
  EXPECT_THAT(log_, ::testing::EndsWith("hearth serve: gpu-worker: a made-up reason\n"));
  EXPECT_EQ(log_.find("starting it again"), std::string::npos) << log_;
}

TEST_F(SupervisorTest, GivesUpOnACrashLoopAndSaysWhy) {
  Tell("expert-store", "crash");
  Start();
  const int status = WaitForEnd();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_THAT(log_, HasSubstr("giving up. Its last words: a made-up reason"));
}

TEST_F(SupervisorTest, ASecondInstanceIsRefusedAndTheFirstGoesOn) {
  Start();
  ASSERT_TRUE(WaitFor([&] { return AllAnswer(); })) << log_;
  Child second = StartSupervisor(run_dir_);
  std::optional<int> status;
  ASSERT_TRUE(WaitFor([&] { return (status = second.Reap()).has_value(); }, seconds(2)));
  EXPECT_EQ(WEXITSTATUS(*status), 2);
  char text[512] = {};
  ASSERT_GT(::read(second.output(), text, sizeof text - 1), 0);
  EXPECT_THAT(text, HasSubstr(absl::StrCat(supervisor_.pid())));
  EXPECT_TRUE(AllAnswer());
}

TEST_F(SupervisorTest, AfterItsOwnDeathNothingIsLeftAndANewOneStarts) {
  Start();
  ASSERT_TRUE(WaitFor([&] { return AllAnswer(); })) << log_;
  ::kill(PidOf("gpu-worker"), SIGSTOP);  // a stopped child must go too
  const pid_t before = PidOf("gpu-worker");
  supervisor_.Signal(SIGKILL);
  WaitForEnd();
  Start();
  ASSERT_TRUE(WaitFor([&] { return PidOf("gpu-worker") != before && AllAnswer(); })) << log_;
  EXPECT_TRUE(WaitFor([&] {
    return ::kill(before, 0) != 0 || !Answers("gpu-worker") || PidOf("gpu-worker") != before;
  }));
}

TEST_F(SupervisorTest, ASecondSignalEndsAStoppedServiceAtOnce) {
  Start();
  ASSERT_TRUE(WaitFor([&] { return AllAnswer(); })) << log_;
  ::kill(PidOf("gateway"), SIGSTOP);
  supervisor_.Signal(SIGTERM);
  ASSERT_TRUE(WaitForLog("\"stopping\"")) << log_;
  const auto begin = std::chrono::steady_clock::now();
  supervisor_.Signal(SIGTERM);
  WaitForEnd();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(2)) << log_;
}

}  // namespace
}  // namespace hearth::cli
