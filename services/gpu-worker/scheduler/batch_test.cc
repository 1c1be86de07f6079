#include "services/gpu-worker/scheduler/batch.h"

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/scheduler/testing.h"

namespace hearth::worker {
namespace {

using namespace std::chrono_literals;
using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

constexpr int64_t kMaxTotal = 200;

// A client: its stream and what it has read.
struct Client {
  GenerationRequest request;
  std::shared_ptr<OutputStream> stream;
  testing::Received got;
};

class BatchTest : public ::testing::Test {
 protected:
  static GenerationRequest Greedy(int n_prompt, int64_t max_tokens, int32_t salt = 1) {
    GenerationRequest request;
    for (int i = 0; i < n_prompt; ++i) request.prompt.push_back((salt + i) % 26 + 1);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    return request;
  }

  Client Add(const GenerationRequest& request, size_t capacity = 1000) {
    Client client{request, std::make_shared<OutputStream>(nullptr, capacity), {}};
    batch_.Add(std::make_unique<Sequence>(request, client.stream, tokenizer_, kMaxTotal, now_));
    return client;
  }
  // Steps until nothing is left to compute; clients read all.
  void RunAll(std::vector<Client*> clients) {
    for (int i = 0; i < 10000 && batch_.Step(now_); ++i) {
      for (Client* client : clients) client->got.TakeAll(*client->stream);
    }
    for (Client* client : clients) client->got.TakeAll(*client->stream);
  }
  void ExpectAsAlone(const Client& client) {
    EXPECT_OK(client.got.error);
    ASSERT_TRUE(client.got.finish.has_value());
    EXPECT_EQ(client.got.text, testing::OracleText(client.request, kMaxTotal));
  }

  testing::FakeTokenizer tokenizer_;
  testing::FakeEngine engine_{64, 4, 32};
  SchedulerObserver observer_;
  ContinuousBatch batch_{
      engine_, {.max_sequences = 3, .max_batch_tokens = 32, .prefill_chunk = 6}, observer_};
  Clock::time_point now_ = Clock::time_point(1h);
};

TEST_F(BatchTest, TextIsTheSameInCompanyAsAlone) {
  Client a = Add(Greedy(50, 20, 1)), b = Add(Greedy(3, 30, 5)), c = Add(Greedy(1, 40, 9)),
         d = Add(Greedy(17, 5, 3));
  RunAll({&a, &b, &c, &d});
  for (const Client* client : {&a, &b, &c, &d}) ExpectAsAlone(*client);
  EXPECT_EQ(a.got.finish->completion_tokens, 20);
  EXPECT_EQ(a.got.finish->prompt_tokens, 50);
  EXPECT_EQ(engine_.pages_free(), 64);
  EXPECT_GT(engine_.largest_step(), 6);  // alone, a prompt takes all rows
}

TEST_F(BatchTest, DecodesAdvanceInEveryStepWhileALongPromptIsRead) {
  Client quick = Add(Greedy(2, 60));
  batch_.Step(now_);
  Client slow = Add(Greedy(120, 1));
  int n_steps = 0;
  while (slow.got.n_ended == 0 && n_steps < 100) {
    const size_t before = quick.got.text.size();
    batch_.Step(now_);
    ++n_steps;
    quick.got.TakeAll(*quick.stream);
    slow.got.TakeAll(*slow.stream);
    ASSERT_GT(quick.got.text.size(), before);
  }
  EXPECT_EQ(n_steps, 20);  // 120 tokens in chunks of 6
}

TEST_F(BatchTest, WaitingPromptsShareTheChunk) {
  Client decode = Add(Greedy(1, 100));
  batch_.Step(now_);
  Client long_one = Add(Greedy(100, 1)), short_one = Add(Greedy(6, 1));
  batch_.Step(now_);
  batch_.Step(now_);
  short_one.got.TakeAll(*short_one.stream);
  EXPECT_EQ(short_one.got.n_ended, 1);  // 3 of the 6 tokens a step are its own
  EXPECT_EQ(long_one.got.n_ended, 0);
}

TEST_F(BatchTest, WithoutPagesTheYoungestIsComputedAgain) {
  testing::FakeEngine small(12, 4, 32);
  struct Count : SchedulerObserver {
    void OnPreempted() override { ++n; }
    int n = 0;
  } count;
  ContinuousBatch batch(small, {.max_sequences = 3, .max_batch_tokens = 32, .prefill_chunk = 6},
                        count);
  std::vector<Client> clients;
  for (int i = 0; i < 4; ++i) {
    auto stream = std::make_shared<OutputStream>(nullptr, 1000);
    clients.push_back({Greedy(5, 30, i), stream, {}});
    batch.Add(std::make_unique<Sequence>(clients.back().request, stream, tokenizer_, 48, now_));
  }
  for (int i = 0; i < 1000 && batch.Step(now_); ++i) {
  }
  for (Client& client : clients) {
    client.got.TakeAll(*client.stream);
    EXPECT_EQ(client.got.text, testing::OracleText(client.request, 48));
  }
  EXPECT_GT(count.n, 0);
  EXPECT_EQ(small.pages_free(), 12);
}

TEST_F(BatchTest, CancellingEndsQueuedReadingAndDecodingAtTheNextStep) {
  Client decoding = Add(Greedy(2, 100));
  batch_.Step(now_);
  Client reading = Add(Greedy(100, 100)), other = Add(Greedy(2, 30)), queued = Add(Greedy(2, 30));
  batch_.Step(now_);
  ASSERT_EQ(batch_.n_waiting(), 1);
  for (Client* client : {&decoding, &reading, &queued}) {
    client->stream->Cancel(absl::CancelledError("gone"));
  }
  batch_.Step(now_);
  for (Client* client : {&decoding, &reading, &queued}) {
    client->got.TakeAll(*client->stream);
    EXPECT_THAT(client->got.error, IsStatus(absl::StatusCode::kCancelled, HasSubstr("gone")));
  }
  EXPECT_EQ(queued.got.n_started, 0);
  EXPECT_EQ(engine_.n_states(), 1);
  RunAll({&other});
  ExpectAsAlone(other);
}

TEST_F(BatchTest, DeadlineEndsARequestWhereverItIs) {
  GenerationRequest request = Greedy(2, 100);
  request.deadline = now_ + 5s;
  Client client = Add(request);
  batch_.Step(now_);
  EXPECT_EQ(batch_.NextDeadline(), now_ + 5s);
  batch_.Step(now_ + 5s);
  client.got.TakeAll(*client.stream);
  EXPECT_THAT(client.got.error,
              IsStatus(absl::StatusCode::kDeadlineExceeded, HasSubstr("1 token")));
  EXPECT_TRUE(batch_.is_empty());
}

TEST_F(BatchTest, SlowClientIsParkedThenCancelledAndOthersProceed) {
  Client slow = Add(Greedy(2, 100), /*capacity=*/4), quick = Add(Greedy(2, 30, 7));
  RunAll({&quick});
  ExpectAsAlone(quick);
  EXPECT_EQ(batch_.n_running(), 1);  // parked
  EXPECT_FALSE(batch_.Step(now_ + 29s));
  EXPECT_EQ(batch_.NextDeadline(), now_ + 30s);
  batch_.Step(now_ + 30s);
  slow.got.TakeAll(*slow.stream);
  EXPECT_THAT(slow.got.error, IsStatus(absl::StatusCode::kCancelled, HasSubstr("not read")));
  EXPECT_EQ(slow.got.text.size(), 3u);
  EXPECT_TRUE(batch_.is_empty());
}

TEST_F(BatchTest, ParkedClientThatReadsAgainGoesOn) {
  Client client = Add(Greedy(2, 100), /*capacity=*/4);
  for (int i = 0; i < 300 && client.got.n_ended == 0; ++i) {
    while (batch_.Step(now_)) {
    }
    now_ += 29s;  // never thirty seconds in one go
    client.got.TakeOne(*client.stream);
  }
  client.got.TakeAll(*client.stream);
  ExpectAsAlone(client);
}

TEST_F(BatchTest, DamagedLogitsFailOnlyTheirSequence) {
  GenerationRequest damaged = Greedy(3, 10);
  damaged.prompt[0] = testing::kDamaged;
  Client bad = Add(damaged), good = Add(Greedy(3, 10));
  RunAll({&bad, &good});
  EXPECT_THAT(bad.got.error, IsStatus(absl::StatusCode::kDataLoss, HasSubstr("token 3")));
  ExpectAsAlone(good);
}

TEST_F(BatchTest, FailedStepFailsItsSequencesAndLaterOnesRun) {
  Client lost = Add(Greedy(3, 10));
  engine_.next_error = absl::InternalError("boom");
  batch_.Step(now_);
  lost.got.TakeAll(*lost.stream);
  EXPECT_THAT(lost.got.error, IsStatus(absl::StatusCode::kInternal, HasSubstr("boom")));
  Client next = Add(Greedy(3, 10));
  RunAll({&next});
  ExpectAsAlone(next);
}

TEST_F(BatchTest, ExpertThatIsBeingReloadedOnlyDelays) {
  Client client = Add(Greedy(3, 10)), other = Add(Greedy(9, 10));
  batch_.Step(now_);
  batch_.Step(now_);
  engine_.next_error = absl::UnavailableError("expert is being reloaded");
  EXPECT_TRUE(batch_.Step(now_));
  EXPECT_FALSE(batch_.Step(now_));  // not in a busy loop
  EXPECT_LT(batch_.NextDeadline(), now_ + 2s);
  now_ += 2s;
  RunAll({&client, &other});
  ExpectAsAlone(client);
  ExpectAsAlone(other);
}

TEST_F(BatchTest, StopsAreHonoured) {
  const std::string text = testing::OracleText(Greedy(4, 30), kMaxTotal);
  GenerationRequest by_string = Greedy(4, 30);
  by_string.stop_strings = {text.substr(10, 3)};
  const size_t cut = text.find(by_string.stop_strings[0]);
  Client a = Add(by_string);
  GenerationRequest by_id = Greedy(4, 30);
  by_id.stop_ids = {testing::OracleTokens(by_id, kMaxTotal)[4]};
  by_id.return_token_ids = true;
  Client b = Add(by_id);
  GenerationRequest to_the_end = Greedy(190, 100);
  Client c = Add(to_the_end);
  RunAll({&a, &b, &c});
  EXPECT_EQ(a.got.text, text.substr(0, cut));
  EXPECT_EQ(a.got.finish->stop_string, by_string.stop_strings[0]);
  EXPECT_EQ(a.got.finish->reason, FinishReason::kStop);
  EXPECT_EQ(b.got.finish->reason, FinishReason::kStop);
  EXPECT_EQ(b.got.ids, testing::OracleTokens(by_id, kMaxTotal));  // with the one that ended it
  EXPECT_EQ(b.got.ids.back(), by_id.stop_ids[0]);
  EXPECT_EQ(b.got.text.size() + 1, b.got.ids.size());  // whose text is not sent
  EXPECT_EQ(c.got.finish->reason, FinishReason::kLength);
  EXPECT_EQ(c.got.finish->completion_tokens, 10);  // the context's end
}

TEST_F(BatchTest, EchoAndLogprobsAreSent) {
  GenerationRequest request = Greedy(4, 5);
  request.echo = "PROMPT ";
  request.sampling.logprobs = 2;
  Client client = Add(request);
  RunAll({&client});
  EXPECT_EQ(client.got.text, "PROMPT " + testing::OracleText(request, kMaxTotal));
  ASSERT_EQ(client.got.logprobs.size(), 5u);
  for (const SampledToken& token : client.got.logprobs) {
    ASSERT_EQ(token.top.size(), 2u);
    EXPECT_EQ(token.top[0].id, token.id);  // greedy
    EXPECT_LT(token.logprob, 0);
  }
}

}  // namespace
}  // namespace hearth::worker
