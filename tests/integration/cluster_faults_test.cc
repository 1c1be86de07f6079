// Each service of a real cluster killed and stopped while texts are generated. The oracle is the
// undisturbed text. Slow for a reason: a stopped service is only known to hang after 5 s.
#include <atomic>
#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cli/supervisor/run_dir.h"
#include "common/rpc/health.h"
#include "tests/integration/cluster_testing.h"

namespace hearth::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// What may pass until a killed or stopped service answers again. A stopped one is known to hang
// after 5 s without an answer.
constexpr seconds kKilledWorker{5}, kKilledGateway{1}, kKilledStore{1}, kStopped{15};
constexpr seconds kMachine{2};  // for a busy machine, on top of what is promised

// Asks /health, /ready and for one token over and over, as a monitor would.
class Sampler {
 public:
  explicit Sampler(int port) : port_(port), thread_([this] { Run(); }) {}
  ~Sampler() { Stop(); }

  // Ends it. The longest time in which /ready said 200 while tokens could not be had.
  milliseconds Stop() {
    is_ending_ = true;
    if (thread_.joinable()) thread_.join();
    return longest_lie_;
  }
  milliseconds slowest_health() const { return slowest_health_; }
  int n_refused_properly() const { return n_refused_; }
  int n_other() const { return n_other_; }
  const std::string& other() const { return other_; }

 private:
  void Run() {
    while (!is_ending_) {
      SampleHealth();
      const auto begin = steady_clock::now();
      HttpCall ready(port_, {.method = "GET", .path = "/ready"});
      const bool says_ready = ready.ReadAll(seconds(8)) && ready.status() == 200;
      const PlainAnswer token = Ask(port_, {.prompt = "hi", .max_tokens = 1}, seconds(10));
      Count(token);
      const bool lies = says_ready && token.status != 200;
      if (!lies) lie_began_.reset();
      if (lies && !lie_began_) lie_began_ = begin;
      if (lies) {
        longest_lie_ =
            std::max(longest_lie_,
                     std::chrono::duration_cast<milliseconds>(steady_clock::now() - *lie_began_));
      }
      Eventually([this] { return is_ending_.load(); }, milliseconds(100));
    }
  }
  void SampleHealth() {
    const auto begin = steady_clock::now();
    HttpCall health(port_, {.method = "GET", .path = "/health"});
    health.ReadAll(seconds(8));
    slowest_health_ = std::max(
        slowest_health_, std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin));
  }
  void Count(const PlainAnswer& token) {
    if (token.status == 200) return;
    if (token.status == 503 && !token.retry_after.empty()) {
      ++n_refused_;
    } else {
      ++n_other_;
      other_ = absl::StrCat(token.status, " ", token.body);
    }
  }

  const int port_;
  std::atomic<bool> is_ending_ = false;
  std::optional<steady_clock::time_point> lie_began_;
  milliseconds longest_lie_{0}, slowest_health_{0};
  int n_refused_ = 0, n_other_ = 0;
  std::string other_;
  std::thread thread_;  // last: starts when the rest exists
};

class ClusterFaultsTest : public ClusterTest {
 protected:
  // Streams that have begun: one of each question.
  std::vector<std::unique_ptr<TextStream>> BeginStreams() {
    std::vector<std::unique_ptr<TextStream>> streams;
    for (const Question& question : questions_) {
      streams.push_back(std::make_unique<TextStream>(port(), question));
    }
    for (const auto& stream : streams) EXPECT_TRUE(stream->ReadBytes(10));
    EXPECT_TRUE(WaitForWorker([&](const auto& status) {
      return status.n_running() == static_cast<int>(streams.size());
    })) << "the streams ended before the fault";
    return streams;
  }

  // Sends the signal; when it was sent.
  steady_clock::time_point Hit(const std::string& service, int signal) {
    pid_ = PidOf(service);
    EXPECT_GT(pid_, 0);
    EXPECT_EQ(::kill(pid_, signal), 0);
    return steady_clock::now();
  }
  bool IsReplaced(const std::string& service) const { return PidOf(service) != pid_; }

  void StoreFails(int signal, milliseconds limit);
  void WorkerFails(int signal, milliseconds limit);
  void GatewayFails(int signal, milliseconds limit);

  pid_t pid_ = 0;
};

void ClusterFaultsTest::StoreFails(int signal, milliseconds limit) {
  Start();
  const uint64_t inode = SegmentInode();
  const auto streams = BeginStreams();
  Sampler sampler(port());
  const auto begin = Hit("expert-store", signal);
  auto recovery = std::async(std::launch::async, [&] {
    EXPECT_TRUE(Eventually([&] {
      return IsReplaced("expert-store") &&
             ProbeHealth(cli::StoreAddress(run_), "ready", seconds(1)).ok();
    })) << log();
    return steady_clock::now() - begin;
  });
  for (size_t i = 0; i < streams.size(); ++i) {
    streams[i]->Finish();
    EXPECT_TRUE(streams[i]->is_whole()) << streams[i]->error();
    EXPECT_EQ(streams[i]->text(), oracle_[i]);
  }
  // New requests until it is back, and at least one.
  do {
    EXPECT_EQ(Ask(port(), questions_[1]).text, oracle_[1]);
  } while (recovery.wait_for(seconds(0)) != std::future_status::ready);
  EXPECT_LT(recovery.get(), limit + kMachine);
  EXPECT_TRUE(WaitForWorker([](const auto& status) { return status.store_connected(); }));
  ExpectUndisturbed();
  EXPECT_EQ(sampler.Stop(), milliseconds(0));
  EXPECT_EQ(sampler.n_refused_properly() + sampler.n_other(), 0) << sampler.other();
  EXPECT_EQ(SegmentInode(), inode) << "the segment was not adopted";
}

TEST_F(ClusterFaultsTest, AKilledStoreIsNoticedByNobody) { StoreFails(SIGKILL, kKilledStore); }

TEST_F(ClusterFaultsTest, AStoppedStoreIsNoticedByNobody) { StoreFails(SIGSTOP, kStopped); }

void ClusterFaultsTest::WorkerFails(int signal, milliseconds limit) {
  Start();
  const uint64_t inode = SegmentInode();
  const auto streams = BeginStreams();
  Sampler sampler(port());
  const auto begin = Hit("gpu-worker", signal);
  for (size_t i = 0; i < streams.size(); ++i) {
    streams[i]->Finish();
    // An error as the last event, and all before it right.
    EXPECT_TRUE(streams[i]->call().is_complete()) << "the connection broke";
    EXPECT_THAT(streams[i]->error(), HasSubstr("server_error"));
    EXPECT_FALSE(streams[i]->is_done());
    EXPECT_EQ(streams[i]->finish_reason(), "");
    EXPECT_THAT(oracle_[i], StartsWith(streams[i]->text()));
    EXPECT_LT(streams[i]->text().size(), oracle_[i].size());
  }
  EXPECT_LT(steady_clock::now() - begin, limit);
  PlainAnswer answer;
  EXPECT_TRUE(Eventually([&] {
    answer = Ask(port(), questions_[1]);
    return answer.status == 200;
  })) << answer.body;
  EXPECT_LT(steady_clock::now() - begin, limit + kMachine);
  ExpectUndisturbed();
  EXPECT_LT(sampler.Stop(), seconds(10)) << "/ready said yes while no token was to be had";
  EXPECT_GT(sampler.n_refused_properly(), 0);
  EXPECT_EQ(sampler.n_other(), 0) << sampler.other();
  EXPECT_LT(sampler.slowest_health(), milliseconds(500));
  EXPECT_EQ(SegmentInode(), inode);
  EXPECT_TRUE(IsReplaced("gpu-worker"));
}

TEST_F(ClusterFaultsTest, AKilledWorkerEndsStreamsWithAnErrorAndIsBackInSeconds) {
  WorkerFails(SIGKILL, kKilledWorker);
}

TEST_F(ClusterFaultsTest, AStoppedWorkerEndsStreamsWithAnErrorAndIsBackInSeconds) {
  WorkerFails(SIGSTOP, kStopped);
}

void ClusterFaultsTest::GatewayFails(int signal, milliseconds limit) {
  Start();
  const int before = port();
  const auto streams = BeginStreams();
  const auto begin = Hit("gateway", signal);
  for (size_t i = 0; i < streams.size(); ++i) {
    streams[i]->Finish();
    EXPECT_TRUE(streams[i]->call().is_broken()) << "a text without an end looked whole";
    EXPECT_FALSE(streams[i]->is_done());
    EXPECT_THAT(oracle_[i], StartsWith(streams[i]->text()));
  }
  // The worker cancels what nobody reads any more: within a step.
  EXPECT_TRUE(WaitForWorker(
      [](const auto& status) {
        return status.n_running() == 0 && status.n_waiting() == 0 && status.kv_pages_used() == 0;
      },
      seconds(3)));
  EXPECT_TRUE(Eventually([&] {
    HttpCall health(before, {.method = "GET", .path = "/health"});
    return health.ReadAll(seconds(1)) && health.status() == 200;
  }));
  EXPECT_LT(steady_clock::now() - begin, limit + kMachine);
  EXPECT_EQ(port(), before) << "clients know the port";
  EXPECT_TRUE(Eventually([&] { return Ask(port(), questions_[1]).status == 200; }));
  EXPECT_LT(steady_clock::now() - begin, limit + 2 * kMachine);
  ExpectUndisturbed();
}

TEST_F(ClusterFaultsTest, AKilledGatewayIsBackAtOnceAndItsRequestsAreCancelled) {
  GatewayFails(SIGKILL, kKilledGateway);
}

TEST_F(ClusterFaultsTest, AStoppedGatewayIsReplacedAndItsRequestsAreCancelled) {
  GatewayFails(SIGSTOP, kStopped);
}

TEST_F(ClusterFaultsTest, StoreAndWorkerKilledTogetherAreBackWithTheSameSegment) {
  Start();
  const uint64_t inode = SegmentInode();
  const auto streams = BeginStreams();
  const auto begin = Hit("expert-store", SIGKILL);
  Hit("gpu-worker", SIGKILL);
  for (size_t i = 0; i < streams.size(); ++i) {
    streams[i]->Finish();
    EXPECT_THAT(streams[i]->error(), HasSubstr("server_error"));
    EXPECT_THAT(oracle_[i], StartsWith(streams[i]->text()));
  }
  EXPECT_TRUE(Eventually([&] { return Ask(port(), questions_[1]).status == 200; }));
  EXPECT_LT(steady_clock::now() - begin, seconds(6) + kMachine);
  ExpectUndisturbed();
  EXPECT_EQ(SegmentInode(), inode);
}

}  // namespace
}  // namespace hearth::testing
