#include "services/gpu-worker/scheduler/scheduler.h"

#include <latch>

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/scheduler/testing.h"

namespace hearth::worker {
namespace {

using namespace std::chrono_literals;
using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

// A stream that can be waited for.
class Client {
 public:
  explicit Client(size_t capacity = 64)
      : stream(std::make_shared<OutputStream>([shared = shared_] { shared->Ring(); }, capacity)) {}

  // Reads to the end.
  const testing::Received& Await() {
    while (got.n_ended == 0) {
      got.TakeAll(*stream);
      if (got.n_ended == 0 && !shared_->Wait()) {
        ADD_FAILURE() << "no event in time";
        break;
      }
    }
    return got;
  }

 private:
  struct Shared {
    void Ring() {
      const std::lock_guard lock(mutex);
      rung = true;
      changed.notify_all();
    }
    bool Wait() {
      std::unique_lock lock(mutex);
      const bool in_time = changed.wait_for(lock, 20s, [&] { return rung; });
      rung = false;
      return in_time;
    }
    std::mutex mutex;
    std::condition_variable changed;
    bool rung = false;
  };
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();

 public:
  std::shared_ptr<OutputStream> stream;
  testing::Received got;
};

GenerationRequest Greedy(int n_prompt, int64_t max_tokens, int32_t salt = 1) {
  GenerationRequest request;
  for (int i = 0; i < n_prompt; ++i) request.prompt.push_back((salt + i) % 26 + 1);
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  return request;
}

class SchedulerTest : public ::testing::Test {
 protected:
  void Start(SchedulerOptions options = {}) {
    options.batch.max_sequences = 2;
    options.batch.max_batch_tokens = 32;
    options.context_tokens = 200;
    ASSERT_OK_AND_ASSIGN(scheduler_, Scheduler::Start(engine_, tokenizer_, options, observer_));
  }
  // True once `condition` holds.
  template <typename Condition>
  bool Eventually(Condition condition) {
    const auto deadline = Clock::now() + 20s;
    while (!condition()) {
      if (Clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }

  testing::FakeTokenizer tokenizer_;
  testing::FakeEngine engine_{64, 4, 32};
  SchedulerObserver observer_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, EightClientsGetTheTextThatEachGetsAlone) {
  Start();
  std::vector<std::thread> threads;
  threads.reserve(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      GenerationRequest request = Greedy(3 + 5 * i, 40, i);
      request.sampling.temperature = 0.8f;
      request.sampling.seed = static_cast<uint64_t>(i);
      Client client(/*capacity=*/4);
      EXPECT_OK(scheduler_->Submit(request, client.stream));
      EXPECT_EQ(client.Await().text, testing::OracleText(request, 200));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(Eventually([&] { return scheduler_->status().pages_used == 0; }));
  EXPECT_GE(scheduler_->status().ms_since_last_token, 0);
}

TEST_F(SchedulerTest, FullQueueRefusesAtOnceWithTheNumbers) {
  Start({.batch = {}, .queue_limit = 1, .context_tokens = 0, .before_step = nullptr});
  engine_.Hold();
  Client a, b, c, d;
  EXPECT_OK(scheduler_->Submit(Greedy(2, 3), a.stream));
  engine_.AwaitHeld();
  EXPECT_OK(scheduler_->Submit(Greedy(2, 3), b.stream));
  EXPECT_OK(scheduler_->Submit(Greedy(2, 3), c.stream));
  EXPECT_THAT(scheduler_->Submit(Greedy(2, 3), d.stream),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("the limit is 3")));
  GenerationRequest probe = Greedy(1, 1);
  probe.is_probe = true;
  Client e;
  EXPECT_OK(scheduler_->Submit(probe, e.stream));
  engine_.Release();
  for (Client* client : {&a, &b, &c, &e}) EXPECT_TRUE(client->Await().finish.has_value());
}

TEST_F(SchedulerTest, PromptThatCanNeverFitIsRefusedWithTheNumbers) {
  Start();
  EXPECT_EQ(scheduler_->max_request_tokens(), 200);
  Client client;
  EXPECT_THAT(scheduler_->Submit(Greedy(200, 3), client.stream),
              IsStatus(absl::StatusCode::kOutOfRange, HasSubstr("has 200 tokens")));
  EXPECT_OK(scheduler_->Submit(Greedy(199, 3), client.stream));
  EXPECT_EQ(client.Await().finish->completion_tokens, 1);
}

TEST_F(SchedulerTest, KvPagesLimitTheLongestRequest) {
  testing::FakeEngine small(10, 4, 32);
  ASSERT_OK_AND_ASSIGN(const auto scheduler,
                       Scheduler::Start(small, tokenizer_,
                                        {.batch = {.max_sequences = 2, .max_batch_tokens = 32},
                                         .queue_limit = 4,
                                         .context_tokens = 1000,
                                         .before_step = nullptr},
                                        observer_));
  EXPECT_EQ(scheduler->max_request_tokens(), 40);
}

TEST_F(SchedulerTest, CancelWakesAParkedSequence) {
  Start();
  Client client(/*capacity=*/3);
  EXPECT_OK(scheduler_->Submit(Greedy(2, 100), client.stream));
  ASSERT_TRUE(Eventually([&] { return client.stream->is_full(); }));
  ASSERT_TRUE(Eventually([&] { return scheduler_->status().ms_since_progress == 0; }));
  client.stream->Cancel(absl::CancelledError("gone"));
  EXPECT_THAT(client.Await().error, IsStatus(absl::StatusCode::kCancelled, HasSubstr("gone")));
  EXPECT_TRUE(Eventually([&] { return scheduler_->status().n_running == 0; }));
}

TEST_F(SchedulerTest, HeartbeatTellsAStuckStepFromIdleness) {
  Start();
  EXPECT_EQ(scheduler_->status().ms_since_progress, 0);
  engine_.Hold();
  Client client;
  EXPECT_OK(scheduler_->Submit(Greedy(2, 3), client.stream));
  engine_.AwaitHeld();
  EXPECT_TRUE(Eventually([&] { return scheduler_->status().ms_since_progress >= 30; }));
  engine_.Release();
  client.Await();
  EXPECT_TRUE(Eventually([&] { return scheduler_->status().ms_since_progress == 0; }));
}

TEST_F(SchedulerTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  Start();
  engine_.Hold();
  Client client, late;
  EXPECT_OK(scheduler_->Submit(Greedy(2, 10), client.stream));
  EXPECT_FALSE(scheduler_->Drain(Clock::now() + 10ms));
  EXPECT_THAT(scheduler_->Submit(Greedy(2, 10), late.stream),
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  engine_.Release();
  EXPECT_TRUE(scheduler_->Drain(Clock::now() + 20s));
  EXPECT_TRUE(client.Await().finish.has_value());
}

TEST_F(SchedulerTest, LostDeviceEndsAllRequestsAndTheThreadAndSaysWhy) {
  absl::Status why;
  SchedulerOptions options;
  options.on_lost = [&why](const absl::Status& status) { why = status; };
  Start(options);
  engine_.Hold();
  Client running, queued, late;
  EXPECT_OK(scheduler_->Submit(Greedy(2, 10), running.stream));
  engine_.AwaitHeld();
  EXPECT_OK(scheduler_->Submit(Greedy(2, 10), queued.stream));
  engine_.next_error = engine_.lost = absl::InternalError("an illegal address");
  engine_.Release();
  EXPECT_THAT(running.Await().error,
              IsStatus(absl::StatusCode::kInternal, HasSubstr("an illegal address")));
  EXPECT_THAT(queued.Await().error, IsStatus(absl::StatusCode::kUnavailable, ::testing::_));
  EXPECT_TRUE(Eventually([&] { return !scheduler_->status().is_running; }));
  EXPECT_THAT(scheduler_->Submit(Greedy(2, 10), late.stream),
              IsStatus(absl::StatusCode::kUnavailable, ::testing::_));
  EXPECT_THAT(why, IsStatus(absl::StatusCode::kInternal, HasSubstr("an illegal address")));
}

TEST_F(SchedulerTest, StopEndsWhatIsLeftAndStreamsOutliveIt) {
  Start();
  engine_.Hold();
  Client running, queued;
  EXPECT_OK(scheduler_->Submit(Greedy(2, 10), running.stream));
  engine_.AwaitHeld();
  EXPECT_OK(scheduler_->Submit(Greedy(2, 10), queued.stream));
  scheduler_.reset();
  EXPECT_THAT(running.Await().error,
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("shutting")));
  EXPECT_THAT(queued.Await().error,
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("shutting")));
  queued.stream->Cancel(absl::CancelledError("late"));  // must not touch the scheduler
}

}  // namespace
}  // namespace hearth::worker
