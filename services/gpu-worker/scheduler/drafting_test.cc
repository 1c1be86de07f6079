// The batch with an engine that guesses: every text is the one without guesses, whatever the
// request asks for and whoever shares its steps.
#include <map>

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/scheduler/batch.h"
#include "services/gpu-worker/scheduler/testing.h"

namespace hearth::worker {
namespace {

using namespace std::chrono_literals;
using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

constexpr int64_t kMaxTotal = 200;

struct Client {
  GenerationRequest request;
  std::shared_ptr<OutputStream> stream;
  testing::Received got;
};

struct Counter : SchedulerObserver {
  void OnGuesses(int n_guessed, int n_right) override { guessed += n_guessed, right += n_right; }
  void OnPreempted() override { ++preempted; }
  void OnStep(Seconds, int prefill, int decode) override {
    prefill_rows += prefill, decode_rows += decode;
  }
  int guessed = 0, right = 0, preempted = 0, prefill_rows = 0, decode_rows = 0;
};

class DraftingTest : public ::testing::Test {
 protected:
  static GenerationRequest Request(int n_prompt, int64_t max_tokens, int32_t salt = 1) {
    GenerationRequest request;
    for (int i = 0; i < n_prompt; ++i) request.prompt.push_back((salt + i) % 26 + 1);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.return_token_ids = true;
    return request;
  }
  Client Add(const GenerationRequest& request, size_t capacity = 1000) {
    Client client{request, std::make_shared<OutputStream>(nullptr, capacity), {}};
    batch_->Add(std::make_unique<Sequence>(request, client.stream, tokenizer_, kMaxTotal, now_));
    return client;
  }
  void RunAll(std::vector<Client*> clients) {
    for (int i = 0; i < 10000 && batch_->Step(now_); ++i) {
      for (Client* client : clients) client->got.TakeAll(*client->stream);
    }
    for (Client* client : clients) client->got.TakeAll(*client->stream);
  }
  void ExpectAsAlone(const Client& client) {
    EXPECT_OK(client.got.error);
    ASSERT_TRUE(client.got.finish.has_value());
    EXPECT_EQ(client.got.ids, testing::OracleTokens(client.request, kMaxTotal));
    EXPECT_EQ(client.got.finish->completion_tokens, static_cast<int>(client.got.ids.size()));
  }
  void UseEngine(int64_t pages, int max_batch_tokens, int max_drafts = kMaxDrafts) {
    batch_.reset();
    engine_ = std::make_unique<testing::FakeEngine>(pages, 4, max_batch_tokens, max_drafts);
    batch_ = std::make_unique<ContinuousBatch>(*engine_,
                                               BatchOptions{.max_sequences = 3,
                                                            .max_batch_tokens = max_batch_tokens,
                                                            .prefill_chunk = 6,
                                                            .drafting = Drafting::kOn},
                                               counter_);
  }
  void SetUp() override { UseEngine(160, 32); }

  testing::FakeTokenizer tokenizer_;
  std::unique_ptr<testing::FakeEngine> engine_;
  Counter counter_;
  std::unique_ptr<ContinuousBatch> batch_;
  Clock::time_point now_ = Clock::time_point(1h);
};

TEST_F(DraftingTest, FewerStepsGiveTheSameText) {
  Client client = Add(Request(5, 100));
  RunAll({&client});
  ExpectAsAlone(client);
  EXPECT_GT(counter_.right, 40);
  EXPECT_GT(counter_.guessed, counter_.right);  // some are wrong
  EXPECT_LT(engine_->n_steps(), 65);
  EXPECT_EQ(engine_->n_steps() + counter_.right, 100);  // each step's own token, and the guesses
  EXPECT_EQ(counter_.decode_rows, 99 + counter_.guessed - counter_.right);
  EXPECT_EQ(engine_->pages_free(), 160);
}

TEST_F(DraftingTest, WhateverTheSamplerIsAskedForTheTextIsTheSame) {
  std::vector<SamplingParams> all;
  all.push_back({.temperature = 1, .seed = 1});
  all.push_back({.temperature = 0.7f, .top_k = 5, .seed = 2});
  all.push_back({.temperature = 1.5f, .top_p = 0.8f, .min_p = 0.02f, .seed = 3});
  all.push_back({.temperature = 0, .repetition_penalty = 1.5f});
  all.push_back({.temperature = 1,
                 .presence_penalty = 1.5f,
                 .frequency_penalty = 0.8f,
                 .logit_bias = {{4, 3.f}, {9, -100.f}},
                 .seed = 4});
  for (const SamplingParams& sampling : all) {
    const int before = counter_.right;
    GenerationRequest request = Request(7, 120);
    request.sampling = sampling;
    request.stop_ids = {testing::kEos};
    Client a = Add(request);
    request.sampling.seed += 100;
    Client b = Add(request);
    RunAll({&a, &b});
    ExpectAsAlone(a);
    ExpectAsAlone(b);
    EXPECT_GT(counter_.right, before);
  }
}

TEST_F(DraftingTest, TextIsTheSameInCompanyAsAlone) {
  Client a = Add(Request(50, 40, 1)), b = Add(Request(3, 60, 5)), c = Add(Request(1, 77, 9)),
         d = Add(Request(17, 5, 3)), e = Add(Request(60, 2, 4));
  RunAll({&a, &b, &c, &d, &e});
  for (const Client* client : {&a, &b, &c, &d, &e}) ExpectAsAlone(*client);
  EXPECT_GT(counter_.right, 60);
  EXPECT_LE(engine_->largest_step(), 32);
}

TEST_F(DraftingTest, EndsAreWhereTheyWouldBeWithoutGuesses) {
  // By number: no token beyond, though guesses would have been right.
  for (int n = 1; n <= 9; ++n) {
    Client client = Add(Request(4, n));
    RunAll({&client});
    ExpectAsAlone(client);
    EXPECT_EQ(client.got.ids.size(), static_cast<size_t>(n));
    EXPECT_EQ(client.got.finish->reason, FinishReason::kLength);
  }
  // By the context's end, by a token, by a string: at each place in a step.
  Client end = Add(Request(190, 100));
  RunAll({&end});
  ExpectAsAlone(end);
  EXPECT_EQ(end.got.finish->completion_tokens, 10);
  const auto tokens = testing::OracleTokens(Request(4, 40), kMaxTotal);
  const std::string text = testing::OracleText(Request(4, 40), kMaxTotal);
  for (size_t at = 5; at < 15; ++at) {
    GenerationRequest by_id = Request(4, 40);
    by_id.stop_ids = {tokens[at]};
    GenerationRequest by_string = Request(4, 40);
    by_string.stop_strings = {text.substr(at, 4)};
    Client a = Add(by_id), b = Add(by_string);
    RunAll({&a, &b});
    ExpectAsAlone(a);
    EXPECT_EQ(a.got.finish->reason, FinishReason::kStop);
    EXPECT_EQ(b.got.text, text.substr(0, text.find(by_string.stop_strings[0])));
    EXPECT_EQ(b.got.finish->stop_string, by_string.stop_strings[0]);
  }
  EXPECT_EQ(engine_->pages_free(), 160);
}

TEST_F(DraftingTest, LogprobsAreThoseOfTheModel) {
  GenerationRequest request = Request(4, 30);
  request.sampling.logprobs = 2;
  Client with = Add(request);
  RunAll({&with});
  UseEngine(160, 32, /*max_drafts=*/0);
  Client without = Add(request);
  RunAll({&without});
  ASSERT_EQ(with.got.logprobs.size(), 30u);
  for (size_t i = 0; i < 30; ++i) {
    EXPECT_EQ(with.got.logprobs[i].id, without.got.logprobs[i].id);
    EXPECT_EQ(with.got.logprobs[i].logprob, without.got.logprobs[i].logprob);
    EXPECT_EQ(with.got.logprobs[i].top[1].id, without.got.logprobs[i].top[1].id);
  }
}

TEST_F(DraftingTest, GuessesTakeNoPagesFromOthers) {
  UseEngine(4, 32);
  // Two pages each until the second one ends: guesses would make them three.
  Client longer = Add(Request(5, 11)), shorter = Add(Request(5, 3, 7));
  RunAll({&longer, &shorter});
  ExpectAsAlone(longer);
  ExpectAsAlone(shorter);
  EXPECT_EQ(counter_.preempted, 0);
  EXPECT_GT(counter_.right, 0);
  EXPECT_EQ(engine_->pages_free(), 4);
}

TEST_F(DraftingTest, GuessesTakeNoRowsFromPrompts) {
  UseEngine(160, 8);  // one decodes, so that a prompt gets chunks of 6: one row is left
  Client decoding = Add(Request(2, 60));
  while (decoding.got.ids.empty()) {
    batch_->Step(now_);
    decoding.got.TakeAll(*decoding.stream);
  }
  Client reading = Add(Request(60, 1, 3));
  int n_steps = 0;
  for (; reading.got.n_ended == 0 && n_steps < 100; ++n_steps) {
    batch_->Step(now_);
    reading.got.TakeAll(*reading.stream);
  }
  EXPECT_EQ(n_steps, 10);
  EXPECT_EQ(engine_->largest_step(), 8);
  RunAll({&decoding});
  ExpectAsAlone(decoding);
}

TEST_F(DraftingTest, ErrorsWhileGuessingAreErrorsOfTheStep) {
  Client client = Add(Request(3, 30)), other = Add(Request(9, 30));
  for (int i = 0; i < 5; ++i) batch_->Step(now_);
  engine_->next_draft_error = absl::UnavailableError("expert is being reloaded");
  EXPECT_TRUE(batch_->Step(now_));
  EXPECT_FALSE(batch_->Step(now_));  // not in a busy loop
  now_ += 2s;
  RunAll({&client, &other});
  ExpectAsAlone(client);
  ExpectAsAlone(other);
  Client lost = Add(Request(3, 30));
  for (int i = 0; i < 3; ++i) batch_->Step(now_);
  engine_->next_draft_error = absl::InternalError("boom");
  RunAll({&lost});
  EXPECT_THAT(lost.got.error, IsStatus(absl::StatusCode::kInternal, HasSubstr("boom")));
}

TEST_F(DraftingTest, DamagedLogitsAndCancellingEndOnlyTheirSequence) {
  GenerationRequest damaged = Request(3, 10);
  damaged.prompt[0] = testing::kDamaged;
  Client bad = Add(damaged), good = Add(Request(3, 50)), gone = Add(Request(4, 50));
  for (int i = 0; i < 6; ++i) batch_->Step(now_);
  gone.stream->Cancel(absl::CancelledError("gone"));
  RunAll({&bad, &good, &gone});
  EXPECT_THAT(bad.got.error, IsStatus(absl::StatusCode::kDataLoss, HasSubstr("token 3")));
  EXPECT_THAT(gone.got.error, IsStatus(absl::StatusCode::kCancelled, HasSubstr("gone")));
  ExpectAsAlone(good);
}

TEST_F(DraftingTest, AParkedSequenceGoesOnWhereItWas) {
  Client slow = Add(Request(2, 60), /*capacity=*/4);
  for (int i = 0; i < 300 && slow.got.n_ended == 0; ++i) {
    while (batch_->Step(now_)) {
    }
    EXPECT_LE(slow.got.ids.size(), 60u);
    now_ += 29s;
    slow.got.TakeOne(*slow.stream);
  }
  slow.got.TakeAll(*slow.stream);
  ExpectAsAlone(slow);
}

}  // namespace
}  // namespace hearth::worker
