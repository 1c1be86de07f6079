#include <algorithm>
#include <bit>
#include <random>
#include <set>

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/experts/simulation/clairvoyant.h"
#include "services/gpu-worker/experts/simulation/report.h"
#include "services/gpu-worker/experts/simulation/simulator.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;

ReplayStep Step(const std::vector<int32_t>& experts, bool is_prompt = false) {
  ReplayStep step;
  step.is_prompt = is_prompt;
  step.n_tokens = 1;
  for (const int32_t expert : experts) step.uses.push_back({0, expert, 1});
  return step;
}

constexpr int kImpossible = -1;

// The most hits, by trying every content that the rules allow after every step.
uint64_t BruteForce(const CacheShape& shape, std::span<const ReplayStep> steps,
                    size_t first_counted) {
  const auto n_sets = size_t{1} << shape.n_keys();
  std::vector<int> best(n_sets, kImpossible);
  best[0] = 0;
  for (size_t t = 0; t < steps.size(); ++t) {
    size_t used = 0;
    for (const ExpertUse& use : steps[t].uses)
      used |= size_t{1} << shape.Key(use.layer, use.expert);
    std::vector<int> next(n_sets, kImpossible);
    for (size_t set = 0; set < n_sets; ++set) {
      if (best[set] == kImpossible) continue;
      const bool counts = !steps[t].is_prompt && t >= first_counted;
      const int hits = best[set] + (counts ? std::popcount(set & used) : 0);
      for (size_t after = 0; after < n_sets; ++after) {
        if ((after & ~(set | used)) != 0 || std::popcount(after) > shape.n_slots) continue;
        next[after] = std::max(next[after], hits);
      }
    }
    best = next;
  }
  return static_cast<uint64_t>(*std::ranges::max_element(best));
}

TEST(Clairvoyant, HitsAreThoseOfTryingEverything) {
  std::mt19937 random(1);
  bool has_seen_a_choice = false;
  for (int round = 0; round < 300; ++round) {
    const CacheShape shape{.n_layers = 1 + static_cast<int>(random() % 2),
                           .n_experts = 3,
                           .n_slots = static_cast<int>(random() % 4)};
    std::vector<ReplayStep> steps;
    for (int t = 0; t < 10; ++t) {
      std::set<std::pair<int, int>> uses;
      for (int i = 0; i < 3; ++i) {
        uses.insert({static_cast<int>(random() % static_cast<unsigned>(shape.n_layers)),
                     static_cast<int>(random() % 3)});
      }
      ReplayStep step = Step({}, random() % 4 == 0);
      for (const auto& [layer, expert] : uses) step.uses.push_back({layer, expert, 1});
      steps.push_back(step);
    }
    const size_t first_counted = random() % 5;
    const ClairvoyantResult found = Clairvoyant(shape, steps, first_counted);
    EXPECT_EQ(found.hits, BruteForce(shape, steps, first_counted)) << round;
    has_seen_a_choice |= found.hits > 0 && found.misses > 0;
  }
  EXPECT_TRUE(has_seen_a_choice);
}

TEST(Clairvoyant, CountsMissesAndCopies) {
  const CacheShape shape{.n_layers = 1, .n_experts = 4, .n_slots = 1};
  // 0 stays over 1, which would end later; 2 is never used again.
  const std::vector<ReplayStep> steps = {Step({0, 1}), Step({0}), Step({0, 2}), Step({1})};
  const ClairvoyantResult found = Clairvoyant(shape, steps, 0);
  EXPECT_EQ(found.hits, 2u);
  EXPECT_EQ(found.misses, 4u);
  EXPECT_EQ(found.admissions, 1u);
}

TEST(Clairvoyant, PromptsUseOfWhatIsHeldIsNoCopy) {
  const CacheShape shape{.n_layers = 1, .n_experts = 4, .n_slots = 1};
  const std::vector<ReplayStep> steps = {Step({0}), Step({0}, true), Step({0})};
  const ClairvoyantResult found = Clairvoyant(shape, steps, 0);
  EXPECT_EQ(found.hits, 1u);
  EXPECT_EQ(found.admissions, 1u);
}

TEST(EarlyRecall, IsTheShareOfUsesThatWereForetold) {
  const CacheShape shape{.n_layers = 2, .n_experts = 4, .n_slots = 1};
  ReplayStep step = Step({0, 1});  // layer 0: nothing could foretell them
  EXPECT_EQ(EarlyRecall(shape, {&step, 1}), std::nullopt);
  step.uses.push_back({1, 2, 1});
  step.uses.push_back({1, 3, 1});
  step.early_uses = {{1, 3, 1}, {1, 0, 1}};
  const std::vector<ReplayStep> steps = {step, step};
  EXPECT_EQ(EarlyRecall(shape, steps), 0.5);
}

TEST(Simulate, CountsWhatThePolicyDoes) {
  const CacheShape shape{.n_layers = 1, .n_experts = 8, .n_slots = 0};
  std::vector<ReplayStep> steps;
  for (int i = 0; i < 10; ++i) steps.push_back(Step({0, 1}));
  for (int i = 0; i < 3; ++i) steps.push_back(Step({0, 1, 2 + i}));
  SimulationOptions options{.policy = "lru", .n_slots = 2, .at_most = 4, .first_counted = 10};
  ASSERT_OK_AND_ASSIGN(const auto lru, Simulate(shape, steps, options));
  EXPECT_EQ(lru.tokens, 3u);
  EXPECT_EQ(lru.hits, 6u);
  EXPECT_EQ(lru.misses, 3u);
  EXPECT_EQ(lru.admissions, 0u);
  options.policy = "recency";  // admits each passer-by in place of one that returns
  ASSERT_OK_AND_ASSIGN(const auto recency, Simulate(shape, steps, options));
  EXPECT_EQ(recency.admissions, 0u);  // at equal age nobody is pushed out
  options.first_counted = 0;
  ASSERT_OK_AND_ASSIGN(const auto whole, Simulate(shape, steps, options));
  EXPECT_EQ(whole.hits, 2u * 9 + 6);
  EXPECT_EQ(whole.misses, 2u + 3);
  EXPECT_EQ(whole.admissions, 2u);
  options.policy = "optimum";
  ASSERT_OK_AND_ASSIGN(const auto optimum, Simulate(shape, steps, options));
  EXPECT_EQ(optimum.hits, whole.hits);
  options.policy = "magic";
  EXPECT_THAT(Simulate(shape, steps, options),
              IsStatus(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("magic")));
}

TEST(Simulate, NoDemandPolicyBeatsTheOptimum) {
  std::mt19937 random(2);
  const CacheShape shape{.n_layers = 2, .n_experts = 16, .n_slots = 0};
  std::vector<ReplayStep> steps;
  for (int t = 0; t < 400; ++t) {
    std::set<int> keys;
    while (keys.size() < 5) keys.insert(static_cast<int>(random() % (random() % 3 == 0 ? 32 : 8)));
    ReplayStep step = Step({}, t % 50 == 0);
    step.uses.reserve(keys.size());
    for (const int key : keys) step.uses.push_back({key / 16, key % 16, 1});
    steps.push_back(step);
  }
  for (const int n_slots : {1, 4, 10, 32}) {
    SimulationOptions options{.policy = "optimum", .n_slots = n_slots, .at_most = 5};
    ASSERT_OK_AND_ASSIGN(const auto optimum, Simulate(shape, steps, options));
    for (const char* policy : {"lru", "prompt", "recency"}) {
      options.policy = policy;
      ASSERT_OK_AND_ASSIGN(const auto result, Simulate(shape, steps, options));
      EXPECT_LE(result.hits, optimum.hits) << policy << " " << n_slots;
      EXPECT_GT(result.hits, 0u);
      EXPECT_EQ(result.hits + result.misses, optimum.hits + optimum.misses);
    }
  }
}

TEST(Simulate, PromptPolicyHitsFromTheFirstToken) {
  const CacheShape shape{.n_layers = 1, .n_experts = 8, .n_slots = 0};
  std::vector<ReplayStep> steps = {Step({3, 4}, true), Step({3, 4})};
  SimulationOptions options{.policy = "prompt", .n_slots = 4, .at_most = 4};
  ASSERT_OK_AND_ASSIGN(const auto prompt, Simulate(shape, steps, options));
  EXPECT_EQ(prompt.early_hits, 2u);
  EXPECT_EQ(prompt.prompt_admissions, 2u);
  EXPECT_EQ(prompt.admissions, 0u);
  options.policy = "lru";
  ASSERT_OK_AND_ASSIGN(const auto lru, Simulate(shape, steps, options));
  EXPECT_EQ(lru.early_misses, 2u);
}

TEST(Replay, TokensOfAStepAreMergedByKind) {
  RoutingTrace trace;
  trace.n_layers = 2;
  trace.n_experts = 4;
  trace.top_k = 2;
  trace.tokens = {{0, 0, true}, {0, 0, true}, {0, 1, false}, {1, 0, false}, {1, 1, false}};
  trace.ids = {{}, {0, 1, 0, 2, 3, 1, 2, 0, 2, 1}};
  const auto steps = Replay(trace);
  ASSERT_EQ(steps.size(), 3u);
  EXPECT_TRUE(steps[0].is_prompt);
  EXPECT_EQ(steps[0].n_tokens, 2);
  ASSERT_EQ(steps[0].uses.size(), 3u);
  EXPECT_EQ(steps[0].uses[0].layer, 1);
  EXPECT_EQ(steps[0].uses[0].rows, 2);
  EXPECT_FALSE(steps[1].is_prompt);
  EXPECT_EQ(steps[1].age, 0);
  EXPECT_EQ(steps[2].n_tokens, 2);
  EXPECT_EQ(steps[2].age, 0);  // of sequence 0
  ASSERT_EQ(steps[2].uses.size(), 3u);
  EXPECT_EQ(steps[2].uses[0].expert, 2);
  EXPECT_EQ(steps[2].uses[0].rows, 2);
  EXPECT_EQ(StepAfterShare(steps, 0.5), 2u);
  EXPECT_EQ(StepAfterShare(steps, 0), 0u);
  const auto uses = CountUses(trace.Shape(0), steps);
  ASSERT_EQ(uses.size(), 4u);
  EXPECT_EQ(uses[0].count, 3u);
}

TEST(Report, HasEveryResult) {
  SimulationReport report{.source = "made up",
                          .shape = {.n_layers = 2, .n_experts = 8, .n_slots = 0},
                          .top_k = 2,
                          .options = {},
                          .results = {}};
  report.results.push_back(
      {.policy = "lru", .n_slots = 4, .tokens = 10, .hits = 3, .misses = 1, .admissions = 25});
  const std::string text = ToText(report);
  EXPECT_THAT(text, ::testing::HasSubstr("75.0 %"));
  EXPECT_THAT(text, ::testing::HasSubstr("2.50"));
  EXPECT_THAT(text, ::testing::HasSubstr("25 %"));
  const json::object object = ToJson(report);
  EXPECT_EQ(object.at("results").as_array().at(0).at("hit_rate").as_double(), 0.75);
}

}  // namespace
}  // namespace hearth::worker
