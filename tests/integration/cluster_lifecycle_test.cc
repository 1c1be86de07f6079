// The start, the end and the death of whole clusters: the supervisor killed, a second instance,
// services killed while they load, SIGTERM, crash loops, descriptors that run out. Slow for a
// reason: exhausted descriptors are only known from the probes' silence of 5 s.
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/supervisor/run_dir.h"
#include "common/base/json.h"
#include "common/rpc/health.h"
#include "tests/integration/cluster_testing.h"

namespace hearth::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr seconds kMachine{2};  // for a busy machine, on top of what is promised
constexpr std::array<const char*, 3> kServices = {"expert-store", "gpu-worker", "gateway"};

// Ended, though perhaps nobody has reaped it yet.
bool IsGone(pid_t pid) {
  const std::string stat = Slurp(absl::StrCat("/proc/", pid, "/stat"));
  const size_t end = stat.rfind(')');
  return end == std::string::npos || stat.substr(end, 3) == ") Z";
}

// User and system time, in seconds.
double CpuSeconds(pid_t pid) {
  const std::string stat = Slurp(absl::StrCat("/proc/", pid, "/stat"));
  const std::vector<std::string> fields = absl::StrSplit(stat.substr(stat.rfind(')') + 2), ' ');
  return (std::stod(fields[11]) + std::stod(fields[12])) /
         static_cast<double>(::sysconf(_SC_CLK_TCK));
}

size_t CountDescriptors(pid_t pid) {
  size_t n = 0;
  std::error_code ignored;
  for ([[maybe_unused]] const auto& entry :
       fs::directory_iterator(absl::StrCat("/proc/", pid, "/fd"), ignored)) {
    ++n;
  }
  return n;
}

std::string LastLine(const std::string& log) {
  if (log.empty()) return "";
  const size_t begin = log.rfind('\n', log.size() - 2);
  return log.substr(begin == std::string::npos ? 0 : begin + 1);
}

class ClusterLifecycleTest : public ClusterTest {
 protected:
  std::vector<pid_t> Pids() const {
    std::vector<pid_t> pids;
    for (const char* service : kServices) pids.push_back(PidOf(service));
    return pids;
  }
  static bool AreGone(const std::vector<pid_t>& pids) {
    return std::all_of(pids.begin(), pids.end(), IsGone);
  }
  // Programs of which the store loads so slowly that it can be met half done.
  fs::path SlowPrograms() {
    const fs::path slow = folder_ / "bin", real = fs::path(HEARTH_CLI).parent_path();
    fs::create_directory(slow);
    for (const char* name : {"hearth-gpu-worker", "hearth-gateway"}) {
      fs::create_symlink(real / name, slow / name);
    }
    std::ofstream(slow / "hearth-expert-store")
        << "#!/bin/sh\nexec '" << (real / "hearth-expert-store").string()
        << "' \"$@\" --load-rate-mb 4\n";
    fs::permissions(slow / "hearth-expert-store", fs::perms::owner_all);
    return slow;
  }
  // Until the store is in the middle of its work; what /ready said then.
  json::object WaitHalfLoaded() {
    json::object ready;
    EXPECT_TRUE(Eventually([&] {
      if (port() == 0) return false;
      HttpCall call(port(), {.method = "GET", .path = "/ready"});
      if (!call.ReadAll(seconds(8)) || call.status() != 503) return false;
      const auto value = ParseJson(call.body());
      if (!value.ok() || !value->is_object()) return false;
      ready = value->as_object();
      const double progress = ready.at("progress").to_number<double>();
      return progress > 0.5 && progress < 0.9;
    })) << SerializeJson(ready)
        << log();
    return ready;
  }
};

TEST_F(ClusterLifecycleTest, AKilledSupervisorLeavesNothingAndTheNextClusterIsTheOnlyOne) {
  Start();
  const uint64_t inode = SegmentInode();
  TextStream stream(port(), questions_[1]);
  ASSERT_TRUE(stream.ReadBytes(10));
  const std::vector<pid_t> before = Pids();
  ::kill(before[0], SIGSTOP);  // a stopped child must go too
  ASSERT_EQ(serve_->Stop(SIGKILL), 128 + SIGKILL);
  fs::rename(log_, folder_ / "log-of-the-first");
  StartOnly();
  ASSERT_TRUE(Eventually([&] { return PidOf("expert-store") != 0; })) << log();
  EXPECT_TRUE(AreGone(before)) << "two clusters on one run directory";
  ASSERT_TRUE(WaitReady()) << log();
  stream.Finish();
  EXPECT_TRUE(stream.call().is_broken());
  EXPECT_THAT(oracle_[1], StartsWith(stream.text()));
  ExpectUndisturbed();
  EXPECT_EQ(SegmentInode(), inode) << "the experts were loaded again";
}

TEST_F(ClusterLifecycleTest, ASecondInstanceIsRefusedAtOnceWithThePidAndTheFirstGoesOn) {
  Start();
  TextStream stream(port(), questions_[1]);
  ASSERT_TRUE(stream.ReadBytes(10));
  const auto begin = steady_clock::now();
  Process second(ServeArguments(), folder_ / "second.log");
  EXPECT_EQ(second.Wait(kPatience), 2);
  EXPECT_LT(steady_clock::now() - begin, seconds(1) + kMachine);
  const std::string said = Slurp(folder_ / "second.log");
  EXPECT_THAT(said, AllOf(StartsWith("hearth serve: "),
                          HasSubstr(absl::StrCat("held by process ", serve_->pid(), ";"))));
  EXPECT_EQ(LastLine(said), said) << "more than one line";
  // Another run directory, the same segment: as good as the same cluster.
  std::vector<std::string> arguments = ServeArguments();
  *std::find(arguments.begin(), arguments.end(), run_.string()) = folder_ / "run2";
  Process third(arguments, folder_ / "third.log");
  EXPECT_EQ(third.Wait(kPatience), 2);
  EXPECT_THAT(LastLine(Slurp(folder_ / "third.log")),
              AllOf(HasSubstr("hearth serve: expert-store"),
                    HasSubstr(absl::StrCat("held by process ", PidOf("expert-store")))));
  stream.Finish();
  EXPECT_EQ(stream.text(), oracle_[1]);
  EXPECT_TRUE(fs::exists(segment_)) << "the refused instance removed the first one's experts";
  ExpectUndisturbed();
}

TEST_F(ClusterLifecycleTest, ServicesKilledWhileTheyLoadAreStartedAgainAndTheTextIsTheSame) {
  Start();  // for the oracle
  ASSERT_EQ(Stop(), 0);
  const fs::path slow = SlowPrograms();
  StartOnly({"--bin-dir", slow.string()});
  for (const char* service : kServices) {
    const json::object ready = WaitHalfLoaded();
    EXPECT_EQ(ready.at("status"), "loading");
    const PlainAnswer early = Ask(port(), questions_[0]);
    EXPECT_EQ(early.status, 503);
    EXPECT_NE(early.retry_after, "");
    const pid_t pid = PidOf(service);
    ::kill(pid, SIGKILL);
    EXPECT_TRUE(Eventually([&] { return PidOf(service) != pid; }));
  }
  ASSERT_TRUE(WaitReady()) << log();
  ExpectUndisturbed();
}

TEST_F(ClusterLifecycleTest, ASegmentThatWasHalfFilledWhenAllWereKilledIsCompletedByTheNext) {
  Start();
  ASSERT_EQ(Stop(), 0);
  EXPECT_FALSE(fs::exists(segment_));
  const fs::path slow = SlowPrograms();
  StartOnly({"--bin-dir", slow.string()});
  WaitHalfLoaded();
  ASSERT_EQ(serve_->Stop(SIGKILL), 128 + SIGKILL);
  Start();
  EXPECT_THAT(log(), HasSubstr("its good experts are kept"));
  ExpectUndisturbed();
}

TEST_F(ClusterLifecycleTest, SigtermLetsRunningTextsEndAndLeavesNothingBehind) {
  Start({"--grace-seconds", "30"});
  const std::vector<pid_t> pids = Pids();
  const int before = port();
  TextStream stream(before, questions_[1]);
  ASSERT_TRUE(stream.ReadBytes(10));
  serve_->Signal(SIGTERM);
  // Nobody new is let in.
  EXPECT_TRUE(Eventually([&] {
    const PlainAnswer answer = Ask(before, questions_[2], seconds(5));
    return answer.status == 0 || (answer.status == 503 && !answer.retry_after.empty());
  }));
  stream.Finish();
  EXPECT_TRUE(stream.is_whole()) << stream.error();
  EXPECT_EQ(stream.text(), oracle_[1]);
  EXPECT_EQ(serve_->Wait(kPatience), 0) << log();
  EXPECT_TRUE(AreGone(pids));
  EXPECT_FALSE(fs::exists(segment_));
  for (const char* name : {"worker.sock", "store.sock", "gateway.port"}) {
    EXPECT_FALSE(fs::exists(run_ / name)) << name;
  }
}

TEST_F(ClusterLifecycleTest, WhatOutlastsTheGraceEndsWithAnErrorEventAndTheExitIsZero) {
  Start({"--grace-seconds", "1"});
  TextStream stream(port(), {.max_tokens = 20000, .temperature = 1, .seed = 7});
  ASSERT_TRUE(stream.ReadBytes(10));
  const auto begin = steady_clock::now();
  serve_->Signal(SIGTERM);
  stream.Finish();
  EXPECT_TRUE(stream.call().is_complete());
  EXPECT_THAT(stream.error(), HasSubstr("server_error"));
  EXPECT_FALSE(stream.is_done());
  EXPECT_EQ(stream.text().substr(0, oracle_[1].size()), oracle_[1].substr(0, stream.text().size()));
  EXPECT_EQ(serve_->Wait(kPatience), 0) << log();
  EXPECT_LT(steady_clock::now() - begin, seconds(4) + kMachine);
}

TEST_F(ClusterLifecycleTest, ASecondSigtermEndsEverythingAtOnce) {
  Start({"--grace-seconds", "120"});
  const std::vector<pid_t> pids = Pids();
  TextStream stream(port(), {.max_tokens = 20000});
  ASSERT_TRUE(stream.ReadBytes(10));
  serve_->Signal(SIGTERM);
  ASSERT_TRUE(Eventually([&] { return absl::StrContains(log(), "\"stopping\""); }));
  EXPECT_EQ(serve_->Wait(milliseconds(300)), kStillRunning) << "the text was not waited for";
  const auto begin = steady_clock::now();
  serve_->Signal(SIGTERM);
  EXPECT_NE(serve_->Wait(kPatience), kStillRunning);
  EXPECT_LT(steady_clock::now() - begin, kMachine);
  EXPECT_TRUE(AreGone(pids));
}

TEST_F(ClusterLifecycleTest, ACrashLoopEndsTheClusterWithTheReason) {
  Start();
  pid_t killed = 0;
  int n_kills = 0;
  while (serve_->Wait(milliseconds(20)) == kStillRunning) {
    const pid_t pid = PidOf("gpu-worker");
    if (pid == killed) continue;
    ::kill(pid, SIGKILL);
    killed = pid;
    ASSERT_LE(++n_kills, 6);
  }
  EXPECT_EQ(serve_->Wait(seconds(0)), 1);
  EXPECT_EQ(n_kills, 6);
  EXPECT_THAT(LastLine(log()), AllOf(StartsWith("hearth serve: gpu-worker ended 6 times within"),
                                     HasSubstr("killed by signal 9"), HasSubstr("giving up")));
  EXPECT_LT(log().size(), size_t{1} << 20);
  EXPECT_TRUE(AreGone(Pids()));
}

// Takes up all descriptors that a process may have.
class Exhaustion {
 public:
  Exhaustion(pid_t pid, const std::function<UniqueFd()>& connect) {
    const auto n_open = static_cast<rlim_t>(CountDescriptors(pid));
    const rlimit limit{n_open + 4, n_open + 4};
    EXPECT_EQ(::prlimit(pid, RLIMIT_NOFILE, &limit, nullptr), 0);
    for (int i = 0; i < 64; ++i) connections_.push_back(connect());
    EXPECT_TRUE(Eventually([&] { return CountDescriptors(pid) >= n_open + 3; }, seconds(10)))
        << CountDescriptors(pid) << " of " << n_open + 4;
  }

 private:
  std::vector<UniqueFd> connections_;
};

UniqueFd ConnectUnix(const fs::path& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.string().copy(address.sun_path, sizeof address.sun_path - 1);
  ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  return fd;
}

UniqueFd ConnectTcp(int port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  return fd;
}

// gRPC 1.51 never accepts again after it once ran out of descriptors, though calls on old
// connections go on: only a probe over a new one finds it.
TEST_F(ClusterLifecycleTest, AWorkerAndAStoreOutOfDescriptorsServeAgainSoonAfterTheirRelease) {
  Start();
  {
    const Exhaustion worker(PidOf("gpu-worker"), [&] { return ConnectUnix(run_ / "worker.sock"); });
    const Exhaustion store(PidOf("expert-store"), [&] { return ConnectUnix(run_ / "store.sock"); });
    // Old connections go on.
    EXPECT_EQ(Ask(port(), questions_[1]).text, oracle_[1]);
  }
  const auto released = steady_clock::now();
  const auto new_connections_are_served = [&] {
    return ProbeHealth(cli::WorkerAddress(run_), "ready", seconds(1)).ok() &&
           ProbeHealth(cli::StoreAddress(run_), "ready", seconds(1)).ok();
  };
  EXPECT_TRUE(Eventually(new_connections_are_served)) << log();
  EXPECT_TRUE(Eventually([&] { return Ask(port(), questions_[1]).status == 200; }));
  EXPECT_LT(steady_clock::now() - released, seconds(10) + kMachine);
  ExpectUndisturbed();
}

TEST_F(ClusterLifecycleTest, AGatewayOutOfDescriptorsWaitsWithoutSpinningAndServesAgainAtOnce) {
  Start();
  const pid_t pid = PidOf("gateway");
  TextStream stream(port(), questions_[1]);
  ASSERT_TRUE(stream.ReadBytes(10));
  const int before = port();
  {
    const Exhaustion gateway(pid, [&] { return ConnectTcp(before); });
    stream.Finish();
    EXPECT_EQ(stream.text(), oracle_[1]) << "who was inside is served";
    const double cpu = CpuSeconds(pid);
    EXPECT_FALSE(Eventually([] { return false; }, seconds(1)));
    EXPECT_LT(CpuSeconds(pid) - cpu, 0.3) << "it spins";
  }
  const auto released = steady_clock::now();
  EXPECT_TRUE(Eventually([&] {
    HttpCall health(before, {.method = "GET", .path = "/health"});
    return health.ReadAll(seconds(1)) && health.status() == 200;
  }));
  EXPECT_LT(steady_clock::now() - released, seconds(1) + kMachine);
  EXPECT_EQ(PidOf("gateway"), pid);
  ExpectUndisturbed();
}

}  // namespace
}  // namespace hearth::testing
