#include "services/gpu-worker/sampling/top_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/sampling/logits.h"
#include "services/gpu-worker/sampling/sampler.h"
#include "services/gpu-worker/sampling/top_logits_testing.h"

namespace hearth::worker {
namespace {

using testing::TopOf;

struct Outcome {
  int n_answered = 0;
  int n_asked = 0;
};

// Both samplers for many positions: every answer must be the sampler's.
void Compare(const SamplingParams& params, const TokenCounts& counts,
             const std::vector<float>& logits, Outcome* outcome) {
  Sampler sampler;
  for (const double error : {-0.9 * kWeightSumError, 0.0, 0.9 * kWeightSumError}) {
    const TopLogitsRow top = TopOf(logits, params.temperature, error);
    for (uint64_t position = 0; position < 20; ++position) {
      const auto got =
          SampleFromTop(params, counts, position, static_cast<int>(logits.size()), top);
      const auto want = sampler.Sample(params, counts, position, logits);
      ASSERT_OK(want);
      int n_fetched = 0;
      const LogitsRow row(&top, static_cast<int>(logits.size()), [&] {
        ++n_fetched;
        return std::span<const float>(logits);
      });
      const auto from_row = sampler.Sample(params, counts, position, row);
      ASSERT_OK(from_row);
      ASSERT_EQ(from_row->id, want->id);
      ASSERT_EQ(n_fetched, got.has_value() ? 0 : 1);
      ++outcome->n_asked;
      if (!got.has_value()) continue;
      ++outcome->n_answered;
      ASSERT_EQ(*got, want->id) << "position " << position << ", top_k " << params.top_k
                                << ", top_p " << params.top_p << ", min_p " << params.min_p;
    }
  }
}

class RandomRows {
 public:
  explicit RandomRows(uint32_t seed) : random_(seed) {}

  // Some are whole numbers, so that many tie; some are as peaked as a model's.
  std::vector<float> Logits() {
    static constexpr int kSizes[] = {3, 256, 257, 1000, 5000};
    std::vector<float> logits(static_cast<size_t>(kSizes[Below(5)]));
    std::normal_distribution<float> normal(0, 1.f + static_cast<float>(Below(5)));
    const bool is_whole = Below(4) == 0;
    for (float& logit : logits) logit = is_whole ? std::round(normal(random_)) : normal(random_);
    if (Below(4) == 0) logits[Below(logits.size())] = -std::numeric_limits<float>::infinity();
    return logits;
  }

  SamplingParams Params() { return testing::RandomParams(random_, 300); }

  TokenCounts Counts(const std::vector<float>& logits) {
    TokenCounts counts;
    for (const Candidate& candidate : TopRanked(logits, 40)) {
      if (Below(3) == 0) counts.AddOutput(candidate.id);
      if (Below(3) == 0) counts.AddPrompt({{candidate.id}});
    }
    for (int i = 0; i < 20; ++i) counts.AddOutput(static_cast<int32_t>(Below(logits.size())));
    return counts;
  }

 private:
  size_t Below(size_t n) { return random_() % n; }

  std::mt19937 random_;
};

TEST(TopSampler, EveryAnswerIsTheSamplersOnTheWholeRow) {
  RandomRows random(7);
  Outcome outcome;
  for (int i = 0; i < 3000; ++i) {
    const std::vector<float> logits = random.Logits();
    const TokenCounts counts = random.Counts(logits);
    ASSERT_NO_FATAL_FAILURE(Compare(random.Params(), counts, logits, &outcome)) << "row " << i;
  }
  EXPECT_GT(outcome.n_answered, outcome.n_asked / 3);
  EXPECT_LT(outcome.n_answered, outcome.n_asked);
}

TEST(TopSampler, AnswersWhatRequestsUsuallyAskFor) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(20000);
  for (float& logit : logits) logit = normal(random);
  for (int i = 0; i < 50; ++i) logits[random() % logits.size()] += 8;  // what a model is sure of
  TokenCounts counts;
  for (const Candidate& candidate : TopRanked(logits, 10)) counts.AddOutput(candidate.id);
  const SamplingParams usual[] = {
      {.temperature = 0},
      {.temperature = 0, .repetition_penalty = 1.2f},
      {.temperature = 0.7f, .top_k = 20, .top_p = 0.8f},
      {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f, .presence_penalty = 1.5f},
      {.temperature = 1, .min_p = 0.05f},
      {.temperature = 0.5f, .top_p = 0.7f},
      {.temperature = 0.8f, .top_k = 40, .logit_bias = {{5, -100.f}}}};
  for (const SamplingParams& params : usual) {
    Outcome outcome;
    ASSERT_NO_FATAL_FAILURE(Compare(params, counts, logits, &outcome));
    EXPECT_EQ(outcome.n_answered, outcome.n_asked)
        << "temperature " << params.temperature << ", top_p " << params.top_p;
  }
}

TEST(TopSampler, LeavesToTheWholeRowWhatItCannotKnow) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = -0.01f * static_cast<float>(i);
  const auto asks_for_all = [&](const SamplingParams& params, const TokenCounts& counts = {}) {
    return !SampleFromTop(params, counts, 0, 1000, TopOf(logits, params.temperature)).has_value();
  };
  EXPECT_FALSE(asks_for_all({.temperature = 0}));
  EXPECT_TRUE(asks_for_all({.temperature = 0, .logprobs = 0}));
  EXPECT_TRUE(asks_for_all({.temperature = 0, .logit_bias = {{999, 1.f}}}));
  EXPECT_TRUE(asks_for_all({.temperature = 0, .repetition_penalty = 0.9f}));
  EXPECT_TRUE(asks_for_all({}));                // draws from all
  EXPECT_TRUE(asks_for_all({.top_p = 0.99f}));  // a nucleus of more than 256
  EXPECT_FALSE(asks_for_all({.top_p = 0.5f}));
  EXPECT_FALSE(asks_for_all({.top_k = 255}));
  EXPECT_TRUE(asks_for_all({.top_k = 256}));  // others may tie with the last
  EXPECT_TRUE(asks_for_all({.min_p = 0.01f}));
  EXPECT_FALSE(asks_for_all({.min_p = 0.2f}));
  EXPECT_TRUE(asks_for_all({.top_p = 0.5f, .presence_penalty = 1}));

  // Ties with what is not there, also those that only the temperature's rounding makes.
  std::fill(logits.begin(), logits.end(), 1.f);
  EXPECT_TRUE(asks_for_all({.temperature = 0}));
  EXPECT_TRUE(asks_for_all({.top_k = 3}));
  TokenCounts counts;
  for (int32_t id = 0; id < 300; ++id) counts.AddOutput(id);
  logits[0] = 2;
  EXPECT_TRUE(asks_for_all({.temperature = 0, .presence_penalty = 3}, counts));

  // A nucleus that ends within the error of the sum.
  const std::vector<float> even = {std::log(0.5f), std::log(0.25f), std::log(0.25f)};
  EXPECT_FALSE(SampleFromTop({.top_p = 0.5f}, {}, 0, 3, TopOf(even, 1)).has_value());
  EXPECT_TRUE(SampleFromTop({.top_p = 0.6f}, {}, 0, 3, TopOf(even, 1)).has_value());

  TopLogitsRow flagged = TopOf(logits, 1);
  flagged.flags = TopLogitsRow::kCrowded;
  EXPECT_FALSE(SampleFromTop({.temperature = 0}, {}, 0, 1000, flagged).has_value());
}

TEST(TopSampler, LogprobsAreOfTheWholeRow) {
  RandomRows random(11);
  Sampler sampler;
  for (int i = 0; i < 200; ++i) {
    const std::vector<float> logits = random.Logits();
    SamplingParams params = random.Params();
    params.logprobs = i % 20;
    const TopLogitsRow top = TopOf(logits, params.temperature);
    const LogitsRow row(&top, static_cast<int>(logits.size()),
                        [&] { return std::span<const float>(logits); });
    ASSERT_OK_AND_ASSIGN(const SampledToken got, sampler.Sample(params, {}, 3, row));
    ASSERT_OK_AND_ASSIGN(const SampledToken want, sampler.Sample(params, {}, 3, logits));
    ASSERT_EQ(got.id, want.id);
    ASSERT_EQ(got.logprob, want.logprob);
    ASSERT_EQ(got.top.size(), want.top.size());
    for (size_t k = 0; k < want.top.size(); ++k) {
      ASSERT_EQ(got.top[k].id, want.top[k].id);
      ASSERT_EQ(got.top[k].logprob, want.top[k].logprob);
    }
  }
}

TEST(TopSampler, WhatTheRowCannotGiveIsToldAsItIs) {
  std::vector<float> logits(1000, 0.f);
  logits[17] = std::nanf("");
  const TopLogitsRow broken = TopOf(logits, 1);
  EXPECT_EQ(broken.flags, TopLogitsRow::kBroken);
  const LogitsRow row(&broken, 1000, [&] { return std::span<const float>(logits); });
  EXPECT_THAT(
      Sampler().Sample({.temperature = 0}, {}, 0, row),
      hearth::testing::IsStatus(absl::StatusCode::kDataLoss, ::testing::HasSubstr("token 17")));
  const LogitsRow lost(&broken, 1000, [] { return absl::InternalError("the GPU is gone"); });
  for (const int logprobs : {-1, 2}) {
    EXPECT_THAT(
        Sampler().Sample({.temperature = 0, .logprobs = logprobs}, {}, 0, lost),
        hearth::testing::IsStatus(absl::StatusCode::kInternal, ::testing::HasSubstr("gone")));
  }
}

}  // namespace
}  // namespace hearth::worker
