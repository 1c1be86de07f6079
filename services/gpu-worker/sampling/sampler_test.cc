#include "services/gpu-worker/sampling/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/sampling/logits.h"
#include "services/gpu-worker/sampling/random.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ln of probabilities, so that a test can state the distribution it means.
std::vector<float> Logits(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  logits.reserve(probabilities.size());
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

int32_t SampleId(const SamplingParams& params, std::span<const float> logits, uint64_t position = 0,
                 const TokenCounts& counts = {}) {
  Sampler sampler;
  const auto token = sampler.Sample(params, counts, position, logits);
  EXPECT_OK(token);
  return token.ok() ? token->id : -1;
}

// How often each token is drawn in `n` positions of one seed.
std::map<int32_t, int> Histogram(const SamplingParams& params, std::span<const float> logits,
                                 int n) {
  std::map<int32_t, int> histogram;
  Sampler sampler;
  for (int i = 0; i < n; ++i) ++histogram[sampler.Sample(params, {}, i, logits)->id];
  return histogram;
}

std::set<int32_t> Drawn(const SamplingParams& params, std::span<const float> logits) {
  std::set<int32_t> ids;
  for (const auto& [id, count] : Histogram(params, logits, 2000)) ids.insert(id);
  return ids;
}

// Chi-square of drawn counts against probabilities.
double ChiSquare(const std::map<int32_t, int>& counts, const std::vector<double>& p, int n) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const auto found = counts.find(static_cast<int32_t>(i));
    const double got = found == counts.end() ? 0 : found->second;
    sum += (got - n * p[i]) * (got - n * p[i]) / (n * p[i]);
  }
  return sum;
}

TEST(Sampler, GreedyTakesTheLowestIndexOfTheLargest) {
  EXPECT_EQ(SampleId({.temperature = 0}, std::vector<float>{1, 3, 2, 3}), 1);
  EXPECT_EQ(SampleId({.temperature = 0}, std::vector<float>{-kInfinity, -5, -kInfinity}), 1);
}

TEST(Sampler, DrawsFollowTheDistribution) {
  const std::vector<double> p = {0.4, 0.3, 0.15, 0.1, 0.04, 0.01};
  constexpr int kDraws = 20000;
  // 5 degrees of freedom: 20.5 is exceeded once in a thousand seeds; the seed is fixed.
  EXPECT_LT(ChiSquare(Histogram({.seed = 11}, Logits(p), kDraws), p, kDraws), 20.5);
  EXPECT_LT(ChiSquare(Histogram({.top_p = 0.999999f, .seed = 12}, Logits(p), kDraws), p, kDraws),
            20.5);
  // The test can fail: the same draws against another distribution.
  const std::vector<double> other = {0.38, 0.32, 0.15, 0.1, 0.04, 0.01};
  EXPECT_GT(ChiSquare(Histogram({.seed = 11}, Logits(p), kDraws), other, kDraws), 20.5);
}

// Why guesses are chosen with the token's own draw: the likeliest guess would be right as often as
// the likeliest token comes, 40 % here.
TEST(Sampler, GuessesFromANearDistributionAreMostlyTheTokenItself) {
  const auto logits = Logits({0.4, 0.3, 0.15, 0.1, 0.04, 0.01});
  const auto near = Logits({0.42, 0.27, 0.16, 0.1, 0.03, 0.02});
  const SamplingParams params = {.top_p = 0.98f, .presence_penalty = 0.5f, .seed = 5};
  TokenCounts counts;
  counts.AddOutput(2);
  Sampler sampler;
  int n_same = 0;
  constexpr int kDraws = 2000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const int32_t token = sampler.Sample(params, counts, i, logits)->id;
    EXPECT_EQ(*sampler.Choose(params, counts, i, logits), token);
    if (*sampler.Choose(params, counts, i, near) == token) ++n_same;
  }
  EXPECT_GT(n_same, kDraws * 9 / 10);
  EXPECT_THAT(sampler.Choose(params, counts, 0, std::vector<float>{0, NAN}),
              IsStatus(absl::StatusCode::kDataLoss, HasSubstr("token 1")));
}

TEST(Sampler, TemperatureIsAPowerOfTheProbabilities) {
  const std::vector<double> p = {0.5, 0.3, 0.2};
  const double sum = 0.25 + 0.09 + 0.04;
  constexpr int kDraws = 20000;
  EXPECT_LT(ChiSquare(Histogram({.temperature = 0.5f, .seed = 3}, Logits(p), kDraws),
                      {0.25 / sum, 0.09 / sum, 0.04 / sum}, kDraws),
            13.8);
  EXPECT_EQ(Drawn({.temperature = 1e-30f}, Logits(p)), (std::set<int32_t>{0}));
}

TEST(Sampler, TopKKeepsKAndPrefersLowerIdsAmongTies) {
  const auto logits = Logits({0.2, 0.3, 0.2, 0.3});
  EXPECT_EQ(Drawn({.top_k = 1}, logits), (std::set<int32_t>{1}));
  EXPECT_EQ(Drawn({.top_k = 3}, logits), (std::set<int32_t>{0, 1, 3}));
  EXPECT_EQ(Drawn({.top_k = 100}, logits), (std::set<int32_t>{0, 1, 2, 3}));
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesIt) {
  const auto logits = Logits({0.1, 0.5, 0.25, 0.15});
  EXPECT_EQ(Drawn({.top_p = 0.01f}, logits), (std::set<int32_t>{1}));
  EXPECT_EQ(Drawn({.top_p = 0.49f}, logits), (std::set<int32_t>{1}));
  EXPECT_EQ(Drawn({.top_p = 0.7f}, logits), (std::set<int32_t>{1, 2}));
  EXPECT_EQ(Drawn({.top_p = 0.8f}, logits), (std::set<int32_t>{1, 2, 3}));
  // After top_k the rest is a distribution of its own: of 0.5 and 0.25, 0.5 is two thirds.
  EXPECT_EQ(Drawn({.top_k = 2, .top_p = 0.6f}, logits), (std::set<int32_t>{1}));
}

TEST(Sampler, MinPIsRelativeToTheBest) {
  const auto logits = Logits({0.1, 0.5, 0.26, 0.14});
  EXPECT_EQ(Drawn({.min_p = 0.5f}, logits), (std::set<int32_t>{1, 2}));
  EXPECT_EQ(Drawn({.min_p = 1}, logits), (std::set<int32_t>{1}));
  EXPECT_EQ(Drawn({.top_k = 3, .min_p = 0.5f}, logits), (std::set<int32_t>{1, 2}));
}

TEST(Sampler, PenaltiesFollowTheirFormulas) {
  TokenCounts counts;
  counts.AddPrompt(std::vector<int32_t>{0, 1});
  counts.AddOutput(1);
  counts.AddOutput(1);
  counts.AddOutput(2);
  std::vector<float> row = {2, 2, -2, 2};
  ApplyBiasAndPenalties({.repetition_penalty = 2}, counts, row);
  EXPECT_THAT(row, ElementsAre(1, 1, -4, 2));  // prompt and output
  row = {2, 2, -2, 2};
  ApplyBiasAndPenalties({.presence_penalty = 0.5f, .frequency_penalty = 0.25f}, counts, row);
  EXPECT_THAT(row, ElementsAre(2, 1, -2.75f, 2));  // output only: once 0.5, each time 0.25
  row = {2, 2, -2, 2};
  ApplyBiasAndPenalties({.repetition_penalty = 2, .logit_bias = {{0, -3}, {3, 100}}}, counts, row);
  EXPECT_THAT(row, ElementsAre(-2, 1, -4, 102));  // the bias comes first
}

TEST(Sampler, BiasForcesAndForbids) {
  const auto logits = Logits({0.9, 0.1});
  EXPECT_EQ(Drawn({.logit_bias = {{0, -100}}}, logits), (std::set<int32_t>{1}));
  EXPECT_EQ(SampleId({.temperature = 0, .logit_bias = {{1, 100}}}, logits), 1);
}

TEST(Sampler, SameSeedAndPositionIsTheSameDraw) {
  const auto logits = Logits({0.25, 0.25, 0.25, 0.25});
  int differs_by_position = 0, differs_by_seed = 0;
  for (uint64_t i = 0; i < 100; ++i) {
    const int32_t id = SampleId({.seed = 5}, logits, i);
    EXPECT_EQ(SampleId({.seed = 5}, logits, i), id);
    differs_by_position += id != SampleId({.seed = 5}, logits, i + 1);
    differs_by_seed += id != SampleId({.seed = 6}, logits, i);
  }
  EXPECT_GT(differs_by_position, 50);
  EXPECT_GT(differs_by_seed, 50);
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  const auto logits = Logits({0.1, 0.6, 0.15, 0.15});
  Sampler sampler;
  SamplingParams params{.temperature = 0, .logit_bias = {{0, 100}}, .logprobs = 3};
  ASSERT_OK_AND_ASSIGN(const SampledToken token, sampler.Sample(params, {}, 0, logits));
  EXPECT_EQ(token.id, 0);
  EXPECT_NEAR(token.logprob, std::log(0.1), 1e-6);
  ASSERT_EQ(token.top.size(), 3u);
  EXPECT_EQ(token.top[0].id, 1);
  EXPECT_NEAR(token.top[0].logprob, std::log(0.6), 1e-6);
  EXPECT_EQ(token.top[1].id, 2);  // ties: the lower id first
  EXPECT_EQ(token.top[2].id, 3);
}

TEST(Sampler, DamagedLogitsAreAnErrorThatNamesTheToken) {
  Sampler sampler;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float temperature : {0.f, 1.f}) {
    EXPECT_THAT(sampler.Sample({.temperature = temperature}, {}, 0, std::vector<float>{0, nan, 1}),
                IsStatus(absl::StatusCode::kDataLoss, HasSubstr("token 1")));
    EXPECT_THAT(sampler.Sample({.temperature = temperature}, {}, 0, std::vector<float>{kInfinity}),
                IsStatus(absl::StatusCode::kDataLoss, HasSubstr("token 0")));
    EXPECT_THAT(sampler.Sample({.temperature = temperature}, {}, 0, std::vector<float>{-kInfinity}),
                IsStatus(absl::StatusCode::kDataLoss, HasSubstr("no token")));
  }
}

// Each place of rows of every length about those of its loops.
TEST(Logits, TheLargestIsFoundWhereverItStands) {
  EXPECT_EQ(Largest({}), -kInfinity);
  for (size_t n = 1; n <= 50; ++n) {
    std::vector<float> row(n, -kInfinity);
    EXPECT_EQ(Largest(row), -kInfinity);
    EXPECT_EQ(ArgMax(row), 0);
    for (size_t i = 0; i < n; ++i) row[i] = -2 - static_cast<float>(i % 7);
    for (size_t at = 0; at < n; ++at) {
      const float before = std::exchange(row[at], -1);
      EXPECT_EQ(Largest(row), -1) << at << " of " << n;
      EXPECT_EQ(ArgMax(row), static_cast<int32_t>(at));
      row[n - 1] = -1;  // of two the first
      EXPECT_EQ(ArgMax(row), static_cast<int32_t>(at));
      row[n - 1] = -9;
      row[at] = std::nanf("");
      EXPECT_THAT(CheckLogits(row), IsStatus(absl::StatusCode::kDataLoss,
                                             HasSubstr(absl::StrCat("token ", at, " "))));
      row[at] = before;
      EXPECT_OK(CheckLogits(row));
    }
  }
}

TEST(UniformAt, IsUniform) {
  constexpr int kBins = 16, kDraws = 16000;
  std::map<int32_t, int> bins;
  for (uint64_t i = 0; i < kDraws; ++i) ++bins[static_cast<int32_t>(UniformAt(i % 7, i) * kBins)];
  EXPECT_LT(ChiSquare(bins, std::vector<double>(kBins, 1.0 / kBins), kDraws), 37.7);
}

}  // namespace
}  // namespace hearth::worker
