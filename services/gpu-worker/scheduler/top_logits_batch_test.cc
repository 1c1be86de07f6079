// The batch with an engine that gives rows by their largest logits: every token and logprob is the
// one of whole rows, and whole rows are asked for only where the largest logits can't tell.
#include <random>

#include "absl/strings/str_cat.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/scheduler/batch.h"
#include "services/gpu-worker/scheduler/testing.h"

namespace hearth::worker {
namespace {

using namespace std::chrono_literals;
using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

constexpr int64_t kMaxTotal = 200;

struct Rows : SchedulerObserver {
  void OnStep(Seconds, int prefill, int decode) override { n += prefill + decode; }
  void OnGuesses(int n_guessed, int n_right) override { guessed += n_guessed, right += n_right; }
  int n = 0, guessed = 0, right = 0;
};

class TopLogitsBatch : public ::testing::Test {
 protected:
  // What clients of an engine receive that gives rows by so many of their 32 logits; 0: whole.
  std::vector<testing::Received> Run(const std::vector<GenerationRequest>& requests,
                                     int top_of_each, int max_drafts = 0) {
    testing::FakeEngine engine(200, 4, 32, max_drafts);
    engine.top_of_each = top_of_each;
    engine.next_read_error = read_error_;
    ContinuousBatch batch(engine,
                          {.max_sequences = 3,
                           .max_batch_tokens = 32,
                           .prefill_chunk = 6,
                           .drafting = max_drafts > 0 ? Drafting::kOn : Drafting::kOff},
                          rows_);
    std::vector<std::shared_ptr<OutputStream>> streams;
    for (const GenerationRequest& request : requests) {
      streams.push_back(std::make_shared<OutputStream>(nullptr, 1000));
      batch.Add(
          std::make_unique<Sequence>(request, streams.back(), tokenizer_, kMaxTotal, Clock::now()));
    }
    while (batch.Step(Clock::now())) {
    }
    std::vector<testing::Received> received(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) received[i].TakeAll(*streams[i]);
    n_reads_ = engine.n_reads();
    return received;
  }

  GenerationRequest Request(const SamplingParams& sampling) {
    GenerationRequest request;
    for (uint32_t i = 0; i < 1 + random_() % 20; ++i) {
      request.prompt.push_back(static_cast<int32_t>(1 + random_() % 26));
    }
    request.sampling = sampling;
    request.max_tokens = 40;
    request.return_token_ids = true;
    return request;
  }

  SamplingParams RandomParams() {
    SamplingParams params = testing::RandomParams(random_, 12);
    if (random_() % 4 == 0) params.logprobs = static_cast<int>(random_() % 6);
    return params;
  }

  static void ExpectSame(const testing::Received& got, const testing::Received& want) {
    EXPECT_OK(got.error);
    ASSERT_TRUE(got.finish.has_value());
    EXPECT_EQ(got.text, want.text);
    EXPECT_EQ(got.ids, want.ids);
    ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
    for (size_t i = 0; i < got.logprobs.size(); ++i) {
      const SampledToken &a = got.logprobs[i], &b = want.logprobs[i];
      EXPECT_EQ(a.logprob, b.logprob);
      ASSERT_EQ(a.top.size(), b.top.size());
      for (size_t k = 0; k < a.top.size(); ++k) {
        EXPECT_EQ(a.top[k].id, b.top[k].id);
        EXPECT_EQ(a.top[k].logprob, b.top[k].logprob);
      }
    }
  }

  testing::FakeTokenizer tokenizer_;
  std::mt19937 random_{5};
  Rows rows_;
  absl::Status read_error_;
  int64_t n_reads_ = 0;
};

TEST_F(TopLogitsBatch, WhateverIsAskedForTheAnswerIsThatOfWholeRows) {
  std::vector<GenerationRequest> requests;
  requests.reserve(120);
  for (int i = 0; i < 120; ++i) requests.push_back(Request(RandomParams()));
  const auto want = Run(requests, 0);
  EXPECT_EQ(n_reads_, 0);
  for (const auto& [top_of_each, max_drafts] : {std::pair(8, 0), {20, 0}, {32, 0}, {8, 2}}) {
    SCOPED_TRACE(absl::StrCat(top_of_each, " of each, ", max_drafts, " guesses"));
    const auto got = Run(requests, top_of_each, max_drafts);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(absl::StrCat("request ", i));
      ASSERT_NO_FATAL_FAILURE(ExpectSame(got[i], want[i]));
    }
    EXPECT_GT(n_reads_, 0);
    if (max_drafts == 0) {
      EXPECT_LT(n_reads_, 120 * 40 * 9 / 10);
    } else {
      EXPECT_GT(rows_.right, 1000);
    }
  }
}

TEST_F(TopLogitsBatch, WhatRequestsUsuallyAskForNeedsNoWholeRow) {
  const std::vector<SamplingParams> usual = {
      {.temperature = 0},
      {.temperature = 0, .repetition_penalty = 1.1f},
      {.temperature = 0.7f, .top_k = 4, .top_p = 0.8f, .seed = 3},
      {.temperature = 0.8f, .top_p = 0.3f, .seed = 5},
      {.temperature = 1, .min_p = 0.3f, .seed = 6}};
  std::vector<GenerationRequest> requests;
  requests.reserve(usual.size());
  for (const SamplingParams& params : usual) requests.push_back(Request(params));
  const auto want = Run(requests, 0);
  for (const int max_drafts : {0, 2}) {
    const auto got = Run(requests, 20, max_drafts);
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_NO_FATAL_FAILURE(ExpectSame(got[i], want[i]));
    }
    EXPECT_EQ(n_reads_, 0);
  }
}

TEST_F(TopLogitsBatch, ARowThatCannotBeReadFailsItsSequenceAlone) {
  const std::vector<GenerationRequest> requests = {Request({.temperature = 1}),
                                                   Request({.temperature = 0})};
  const auto want = Run(requests, 0);
  read_error_ = absl::InternalError("the copy failed");
  const auto got = Run(requests, 20);
  EXPECT_THAT(got[0].error, IsStatus(absl::StatusCode::kInternal, HasSubstr("copy failed")));
  EXPECT_NO_FATAL_FAILURE(ExpectSame(got[1], want[1]));
}

TEST_F(TopLogitsBatch, DamagedLogitsAreNamedAsInAWholeRow) {
  GenerationRequest damaged = Request({.temperature = 0});
  damaged.prompt[0] = testing::kDamaged;
  const auto got = Run({damaged}, 20);
  EXPECT_THAT(got[0].error, IsStatus(absl::StatusCode::kDataLoss, HasSubstr("token 3")));
}

}  // namespace
}  // namespace hearth::worker
