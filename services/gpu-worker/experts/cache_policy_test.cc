#include "services/gpu-worker/experts/cache_policy.h"

#include <unistd.h>

#include <filesystem>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/experts/admission_cost.h"
#include "services/gpu-worker/experts/admission_review.h"
#include "services/gpu-worker/experts/expert_cache.h"

namespace hearth::worker {
namespace {

class PolicyTest : public ::testing::Test {
 protected:
  void Make(std::string_view policy, const PolicyOptions& options, int n_slots = 2) {
    auto made =
        ExpertCache::Create({.n_layers = 1, .n_experts = 16, .n_slots = n_slots}, policy, options);
    ASSERT_OK(made);
    cache_ = *std::move(made);
  }
  // A step that used these experts; then admissions, copied at once.
  std::vector<Admission> Step(const std::vector<int32_t>& ids, int at_most = 16) {
    std::vector<ExpertUse> uses;
    uses.reserve(ids.size());
    for (const int32_t id : ids) uses.push_back({0, id, 1});
    cache_->RecordStep(uses);
    return Admit(at_most);
  }
  std::vector<Admission> Admit(int at_most) {
    auto admissions = cache_->PlanAdmissions(at_most);
    for (const Admission& admission : admissions) cache_->Publish(admission);
    return admissions;
  }
  bool Has(int expert) const { return cache_->SlotOf(0, expert) >= 0; }

  std::unique_ptr<ExpertCache> cache_;
};

TEST(ExpertHeat, HalvesEveryHalfLifeAndSurvivesRescaling) {
  ExpertHeat heat(2, 4);
  heat.Add(0, 1);
  for (int i = 0; i < 4; ++i) heat.Tick();
  EXPECT_NEAR(heat.Heat(0), 0.5, 1e-6);
  heat.Add(1, 3);
  for (int i = 0; i < 40; ++i) heat.Tick();
  EXPECT_NEAR(heat.Heat(0), 0.5 / 1024, 1e-9);
  EXPECT_NEAR(heat.Heat(1), 3.0 / 1024, 1e-8);
  for (int i = 0; i < 1000; ++i) {  // 250 half-lives: several rescalings
    heat.Tick();
    heat.Add(1, 1);
  }
  // A use a step: 1 + g + g^2 + ... with g = 2^(-1/4).
  EXPECT_NEAR(heat.Heat(1), 1 / (1 - std::exp2(-0.25)), 1e-4);
  EXPECT_NEAR(heat.Heat(0), 0, 1e-12);
}

TEST(ExpertHeat, RateLeavesWhatAsManySpreadUsesWouldLeave) {
  ExpertHeat spread(1, 50);
  for (int step = 0; step < 400; ++step) {
    spread.Tick();
    spread.Add(0, 0.25);
  }
  EXPECT_NEAR(spread.HeatOfRate(100, 400), spread.Heat(0), 0.02 * spread.Heat(0));
  EXPECT_NEAR(spread.HeatOfRate(1, 1), 1, 0.02);
}

TEST(AdmissionCost, IsOneUseAndWhatTheGpuNeedsForIt) {
  MachineRates rates{.ram = 78e9, .pcie = 50e9, .vram = 3e12};
  EXPECT_NEAR(AdmissionCost(rates), kSelectionMargin * 1.0267, 1e-3);
  rates.pcie = 3e9;  // takes longer, but reads no more
  EXPECT_NEAR(AdmissionCost(rates), kSelectionMargin * 1.0267, 1e-3);
  rates.vram = 156e9;
  EXPECT_NEAR(AdmissionCost(rates), kSelectionMargin * 2, 1e-9);
  rates.vram = 78e9;
  EXPECT_GT(AdmissionCost(rates), 1000);
  rates.vram = 50e9;
  EXPECT_GT(AdmissionCost(rates), 1000);
}

TEST(AdmissionCost, LinkBoundsTheCopiesOfAStep) {
  const MachineRates rates{.ram = 78e9, .pcie = 50e9, .vram = 3e12};
  EXPECT_EQ(AdmissionsPerStep(rates, 1'625'000, 5e-3), 153);
  EXPECT_EQ(AdmissionsPerStep(rates, 1'625'000, 1e-6), 0);
  EXPECT_EQ(AdmissionsPerStep(rates, 0, 1e9), 1'000'000);
}

TEST(AdmissionCost, FollowsWhatDoctorMeasured) {
  const GpuRates gpu{.copy = {.alone = 50e9, .loaded = 25e9}, .memory_bytes_per_second = 400e9};
  const json::object findings = {
      {"speed", {{"read_bandwidth", {{{"bytes_per_second", {{"median", 100e9}}}}}}}},
      {"gpu_speed", ToJson(gpu)}};
  const std::filesystem::path file =
      std::filesystem::path(::testing::TempDir()) / absl::StrCat("hearth-policy-", ::getpid());
  ASSERT_OK(WriteFileAtomically(file, SerializeJson(findings)));
  const auto rates = ReadMachineRates(file);
  std::filesystem::remove(file);
  ASSERT_OK(rates);
  EXPECT_EQ(AdmissionsPerStep(*rates, 1'000'000, 4e-3), 100) << "beside a CPU that reads";
  EXPECT_NEAR(AdmissionCost(*rates), kSelectionMargin / 0.75, 1e-9);
}

TEST_F(PolicyTest, RecencyEvictsTheLeastRecentlyUsed) {
  Make("recency", {});
  Step({0});
  Step({1});
  Step({0});
  const auto admissions = Step({2});
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].evicted_expert, 1);
  EXPECT_TRUE(Has(0));
}

TEST_F(PolicyTest, LruDoesNotEvictTheRegularForWhatIsSeenOnce) {
  Make("lru", {.half_life_steps = 100, .admission_cost = 1, .profile = {}});
  for (int i = 0; i < 20; ++i) Step({0, 1});
  for (int passer_by = 2; passer_by < 16; ++passer_by) {
    EXPECT_TRUE(Step({passer_by}).empty()) << passer_by;
  }
  EXPECT_TRUE(Has(0) && Has(1));
  EXPECT_EQ(cache_->Statistics().candidates_not_worth, 14u);
}

TEST_F(PolicyTest, LruForgetsAFormerRegular) {
  Make("lru", {.half_life_steps = 10, .admission_cost = 1, .profile = {}});
  for (int i = 0; i < 20; ++i) Step({0, 1});
  for (int i = 0; i < 20; ++i) Step({0, 2});
  EXPECT_TRUE(Has(0) && Has(2));
}

TEST_F(PolicyTest, LruAdmitsOnlyWhatGainsMoreThanItsCopyCosts) {
  for (const double cost : {0.5, 2.5}) {
    Make("lru", {.half_life_steps = 1e6, .admission_cost = cost, .profile = {}}, 1);
    Step({0});
    EXPECT_TRUE(Step({1}).empty());  // as hot: no gain
    int uses = 1;
    while (uses < 10 && !Has(1)) Step({1}), ++uses;
    EXPECT_EQ(uses, cost == 0.5 ? 2 : 4) << cost;
  }
}

TEST_F(PolicyTest, LruTakesTheHottestWhereFewAreAllowed) {
  Make("lru", {.half_life_steps = 100, .admission_cost = 1, .profile = {}});
  for (const auto& ids : std::vector<std::vector<int32_t>>{{3}, {3, 4}, {3, 4, 5}}) Step(ids, 0);
  const auto admissions = Step({5, 4, 3}, 1);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].expert, 3);
  EXPECT_EQ(cache_->Statistics().candidates_dropped, 1u + 2 + 3 + 2);
  EXPECT_TRUE(Admit(16).empty());  // what was left out must be missed again
}

TEST(AdmissionReview, StopsCopiesThatDoNotPayAndLetsThoseThatDoBeMadeAgain) {
  auto made = ExpertCache::Create({.n_layers = 1, .n_experts = 512, .n_slots = 128}, "lru");
  ASSERT_OK(made);
  ExpertCache& cache = **made;
  std::mt19937 random(1);
  uint64_t n_admissions = 0;
  // Ten different experts; of each, eight in ten among the first `working_set`.
  const auto run = [&](int n_steps, int working_set) {
    n_admissions = 0;
    const LayerCounts before = cache.Statistics().layers[0];
    for (int step = 0; step < n_steps; ++step) {
      std::set<int> experts;
      while (experts.size() < 10) {
        const bool is_local = random() % 10 < 8;
        experts.insert(static_cast<int>(random() % (is_local ? unsigned(working_set) : 512U)));
      }
      std::vector<ExpertUse> uses;
      uses.reserve(experts.size());
      for (const int expert : experts) uses.push_back({0, expert, 1});
      cache.RecordStep(uses);
      for (const Admission& admission : cache.PlanAdmissions(10)) {
        cache.Publish(admission);
        ++n_admissions;
      }
    }
    const LayerCounts after = cache.Statistics().layers[0];
    return static_cast<double>(after.hits - before.hits) / (10.0 * n_steps);
  };
  run(3000, 512);  // flat
  EXPECT_NEAR(run(1000, 512), 0.25, 0.05);
  EXPECT_LT(n_admissions, 150u);  // 600 without the review
  run(500, 80);
  EXPECT_GT(run(500, 80), 0.75);
}

TEST(AdmissionReview, MarginIsRaisedByWhatDidNotPayAndRelaxesWithTime) {
  AdmissionReview review({.n_layers = 1, .n_experts = 4, .n_slots = 1},
                         {.half_life_steps = 32, .admission_cost = 2, .profile = {}});
  EXPECT_EQ(review.margin(), 2);
  const ExpertUse use[] = {{0, 0, 1}};
  for (int i = 0; i < 1000; ++i) {
    review.OnAdmission(1, 2);  // neither is used
    review.OnStep(use);
  }
  EXPECT_GT(review.margin(), 3);
  for (int i = 0; i < 5000; ++i) review.OnStep(use);
  EXPECT_NEAR(review.margin(), 2, 0.01);
  for (int i = 0; i < 1000; ++i) {
    review.OnAdmission(0, 1);  // used in every step
    review.OnStep(use);
  }
  EXPECT_NEAR(review.margin(), 2, 0.01);
}

TEST_F(PolicyTest, PromptIsAdmittedBeforeItsFirstToken) {
  const ExpertUse prompt[] = {{0, 7, 90}, {0, 8, 60}, {0, 9, 1}};
  Make("lru", {});
  cache_->RecordPrompt(prompt, 100);
  EXPECT_TRUE(Admit(16).empty());
  Make("prompt", {});
  for (int i = 0; i < 3; ++i) Step({0, 1});
  cache_->RecordPrompt(prompt, 100);
  const auto admissions = Admit(16);
  ASSERT_EQ(admissions.size(), 2u);
  EXPECT_EQ(admissions[0].expert, 7);
  EXPECT_EQ(admissions[1].expert, 8);
  EXPECT_EQ(cache_->Statistics().layers[0].misses, 2u);  // prompts are no steps
}

TEST_F(PolicyTest, ChunksOfAPromptDoNotAddUp) {
  Make("prompt", {.half_life_steps = 50, .admission_cost = 1, .profile = {}}, 1);
  for (int i = 0; i < 200; ++i) Step({0});
  const ExpertUse half[] = {{0, 1, 50}};
  for (int chunk = 0; chunk < 50; ++chunk) cache_->RecordPrompt(half, 100);
  EXPECT_TRUE(Admit(1).empty());  // used by half of the tokens, the resident one by all
}

TEST_F(PolicyTest, PredictiveAdmitsWhatWasPredicted) {
  const int32_t predicted[] = {5};
  Make("lru", {});
  cache_->RecordPrediction(0, predicted);
  EXPECT_TRUE(Admit(1).empty());
  Make("predictive", {});
  cache_->RecordPrediction(0, predicted);
  Step({6}, 2);
  EXPECT_TRUE(Has(5) && Has(6));
}

TEST_F(PolicyTest, ProfileLoadsByFallingCountAndThenStays) {
  Make("profile", {.profile = {{0, 3, 5}, {0, 2, 50}, {0, 1, 5}, {0, 9, 1}}});
  const auto first = Admit(1);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].expert, 2);
  const auto second = Admit(8);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].expert, 1);  // of equals the lower id
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(Step({9}).empty());
  EXPECT_TRUE(Has(2) && Has(1));
}

}  // namespace
}  // namespace hearth::worker
