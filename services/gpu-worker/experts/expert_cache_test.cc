#include "services/gpu-worker/experts/expert_cache.h"

#include <map>
#include <random>
#include <set>
#include <utility>

#include "common/testing/status_matchers.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;

std::unique_ptr<ExpertCache> MakeCache(const CacheShape& shape, std::string_view policy = "lru",
                                       const PolicyOptions& options = {}) {
  auto cache = ExpertCache::Create(shape, policy, options);
  EXPECT_OK(cache);
  return *std::move(cache);
}

void Use(ExpertCache& cache, std::vector<ExpertUse> uses) { cache.RecordStep(uses); }

// Uses, admits and publishes.
void Fill(ExpertCache& cache, const std::vector<ExpertUse>& uses) {
  cache.RecordStep(uses);
  for (const Admission& admission : cache.PlanAdmissions(static_cast<int>(uses.size()))) {
    EXPECT_TRUE(cache.Publish(admission));
  }
}

TEST(ExpertCache, ExpertIsResidentFromItsPublicationOn) {
  auto cache = MakeCache({.n_layers = 2, .n_experts = 4, .n_slots = 2});
  Use(*cache, {{1, 3}});
  const auto admissions = cache->PlanAdmissions(5);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].layer, 1);
  EXPECT_EQ(admissions[0].expert, 3);
  EXPECT_EQ(admissions[0].evicted_layer, -1);
  EXPECT_EQ(cache->SlotOf(1, 3), -1);
  EXPECT_EQ(cache->Statistics().slots_loading, 1);
  EXPECT_TRUE(cache->Publish(admissions[0]));
  EXPECT_EQ(cache->SlotOf(1, 3), admissions[0].slot);
  EXPECT_EQ(cache->SlotOf(0, 3), -1);
  const CacheStatistics statistics = cache->Statistics();
  EXPECT_EQ(statistics.slots_free, 1);
  EXPECT_EQ(statistics.slots_loading, 0);
  EXPECT_EQ(statistics.slots_resident, 1);
  EXPECT_EQ(statistics.layers[1].admissions, 1u);
  EXPECT_EQ(statistics.layers[0].admissions, 0u);
}

TEST(ExpertCache, HitsAreWhatWasResidentDuringTheStep) {
  auto cache = MakeCache({.n_layers = 2, .n_experts = 4, .n_slots = 4});
  Use(*cache, {{0, 1}, {1, 1}});
  const auto admissions = cache->PlanAdmissions(2);
  Use(*cache, {{0, 1}, {1, 1}});  // still loading
  for (const Admission& admission : admissions) cache->Publish(admission);
  Use(*cache, {{0, 1, 8}, {0, 2}, {1, 1}});
  const CacheStatistics statistics = cache->Statistics();
  EXPECT_EQ(statistics.layers[0].hits, 1u);
  EXPECT_EQ(statistics.layers[0].misses, 3u);
  EXPECT_EQ(statistics.layers[1].hits, 1u);
  EXPECT_EQ(statistics.layers[1].misses, 2u);
}

TEST(ExpertCache, EvictedExpertIsGoneWhenTheCopyIsPlanned) {
  auto cache = MakeCache({.n_layers = 1, .n_experts = 4, .n_slots = 1});
  Fill(*cache, {{0, 0}});
  const int slot = cache->SlotOf(0, 0);
  for (int i = 0; i < 5; ++i) Use(*cache, {{0, 1}});
  const auto admissions = cache->PlanAdmissions(1);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].slot, slot);
  EXPECT_EQ(admissions[0].evicted_layer, 0);
  EXPECT_EQ(admissions[0].evicted_expert, 0);
  EXPECT_EQ(cache->SlotOf(0, 0), -1);
  EXPECT_EQ(cache->SlotOf(0, 1), -1);
  EXPECT_EQ(cache->Statistics().layers[0].evictions, 1u);
}

TEST(ExpertCache, LoadingSlotIsNoVictimAndItsExpertNoCandidate) {
  auto cache = MakeCache({.n_layers = 1, .n_experts = 4, .n_slots = 1});
  Use(*cache, {{0, 0}});
  const auto first = cache->PlanAdmissions(1);
  ASSERT_EQ(first.size(), 1u);
  for (int i = 0; i < 10; ++i) Use(*cache, {{0, 1}});
  EXPECT_TRUE(cache->PlanAdmissions(4).empty());
  EXPECT_TRUE(cache->Publish(first[0]));
}

TEST(ExpertCache, AbandonedCopyFreesItsSlot) {
  auto cache = MakeCache({.n_layers = 1, .n_experts = 4, .n_slots = 1});
  Use(*cache, {{0, 2}});
  const auto admissions = cache->PlanAdmissions(1);
  ASSERT_EQ(admissions.size(), 1u);
  cache->Abandon(admissions[0]);
  EXPECT_EQ(cache->SlotOf(0, 2), -1);
  EXPECT_EQ(cache->Statistics().slots_free, 1);
  EXPECT_EQ(cache->Statistics().abandoned, 1u);
  Fill(*cache, {{0, 2}});
  EXPECT_EQ(cache->SlotOf(0, 2), 0);
}

TEST(ExpertCache, ClearLeavesLoadingSlotsToTheirCopies) {
  auto cache = MakeCache({.n_layers = 1, .n_experts = 4, .n_slots = 2});
  Fill(*cache, {{0, 0}});
  Use(*cache, {{0, 1}});
  const auto stale = cache->PlanAdmissions(1);
  ASSERT_EQ(stale.size(), 1u);
  cache->Clear();
  EXPECT_EQ(cache->SlotOf(0, 0), -1);
  EXPECT_EQ(cache->Statistics().slots_free, 1);
  EXPECT_EQ(cache->Statistics().slots_loading, 1);
  // The same expert again, from the new segment, while the old copy still writes.
  Use(*cache, {{0, 1}, {0, 2}});
  const auto fresh = cache->PlanAdmissions(2);
  ASSERT_EQ(fresh.size(), 1u);
  EXPECT_NE(fresh[0].slot, stale[0].slot);
  EXPECT_FALSE(cache->Publish(stale[0]));
  EXPECT_EQ(cache->Statistics().slots_free, 1);
  EXPECT_TRUE(cache->Publish(fresh[0]));
  EXPECT_EQ(cache->SlotOf(0, fresh[0].expert), fresh[0].slot);
}

TEST(ExpertCache, FillingTakesExpertsInTurnFromAllLayersThatHaveThem) {
  CacheShape shape{.n_layers = 3, .n_experts = 4, .n_slots = 6};
  shape.layer_has_experts = {true, false, true};
  auto cache = MakeCache(shape);
  Fill(*cache, {{2, 3}});
  const auto admissions = cache->PlanFilling();
  ASSERT_EQ(admissions.size(), 5u);
  const std::pair<int, int> want[] = {{0, 0}, {2, 0}, {0, 1}, {2, 1}, {0, 2}};
  for (size_t i = 0; i < admissions.size(); ++i) {
    EXPECT_EQ(std::pair(admissions[i].layer, admissions[i].expert), want[i]);
    EXPECT_EQ(admissions[i].evicted_layer, -1);
    EXPECT_TRUE(cache->Publish(admissions[i]));
  }
  EXPECT_TRUE(cache->PlanFilling().empty());
  EXPECT_EQ(cache->Statistics().slots_resident, 6);
  EXPECT_EQ(cache->policy_name(), "lru");
  // What only fills is given up for the first that is used more than once or twice.
  for (int i = 0; i < 3; ++i) Use(*cache, {{2, 2}});
  EXPECT_EQ(cache->PlanAdmissions(4).size(), 1u);
  // What was used before comes first.
  auto known = MakeCache(shape);
  const ExpertUses profile[] = {{2, 3, 5}, {0, 2, 9}, {1, 0, 99}, {2, 7, 99}, {0, 2, 9}};
  const auto by_profile = known->PlanFilling(profile);
  ASSERT_EQ(by_profile.size(), 6u);
  EXPECT_EQ(std::pair(by_profile[0].layer, by_profile[0].expert), std::pair(0, 2));
  EXPECT_EQ(std::pair(by_profile[1].layer, by_profile[1].expert), std::pair(2, 3));
  EXPECT_EQ(std::pair(by_profile[2].layer, by_profile[2].expert), std::pair(0, 0));
  // With more slots than experts some stay free.
  auto large = MakeCache({.n_layers = 1, .n_experts = 2, .n_slots = 5});
  EXPECT_EQ(large->PlanFilling().size(), 2u);
}

TEST(ExpertCache, UsesAreTakenOnceAndCountRows) {
  auto cache = MakeCache({.n_layers = 2, .n_experts = 4, .n_slots = 1});
  Use(*cache, {{1, 2, 3}});
  const ExpertUse prompt[] = {{0, 1, 100}, {1, 2, 7}};
  cache->RecordPrompt(prompt, 107);
  const auto uses = cache->TakeUses();
  ASSERT_EQ(uses.size(), 2u);
  EXPECT_EQ(uses[0].layer, 0);
  EXPECT_EQ(uses[0].expert, 1);
  EXPECT_EQ(uses[0].count, 100u);
  EXPECT_EQ(uses[1].count, 10u);
  EXPECT_TRUE(cache->TakeUses().empty());
}

TEST(ExpertCache, PolicyChangesWhileRunningAndKeepsWhatIsThere) {
  auto cache = MakeCache({.n_layers = 1, .n_experts = 8, .n_slots = 2});
  Fill(*cache, {{0, 0}, {0, 1}});
  EXPECT_THAT(cache->SetPolicy("best", {}),
              IsStatus(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("recency")));
  EXPECT_THAT(cache->SetPolicy("profile", {}),
              IsStatus(absl::StatusCode::kFailedPrecondition, ::testing::HasSubstr("counts")));
  EXPECT_EQ(cache->policy_name(), "lru");
  PolicyOptions options;
  options.profile = {{0, 5, 10}, {0, 1, 20}, {0, 7, 5}, {3, 0, 99}};
  ASSERT_OK(cache->SetPolicy("profile", options));
  EXPECT_EQ(cache->Statistics().policy, "profile");
  EXPECT_NE(cache->SlotOf(0, 0), -1);
  const auto admissions = cache->PlanAdmissions(8);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].expert, 5);
  EXPECT_EQ(admissions[0].evicted_expert, 0);
}

TEST(ExpertCache, FilledSlotsAreSeenByAPolicyThatKnewTheColdest) {
  auto cache = MakeCache({.n_layers = 1, .n_experts = 600, .n_slots = 300}, "recency");
  const auto use = [&](int first, int n) {
    std::vector<ExpertUse> uses;
    for (int expert = first; expert < first + n; ++expert) uses.push_back({0, expert});
    Fill(*cache, uses);
  };
  use(0, 256);
  use(256, 44);
  use(300, 1);  // full: the policy has looked for the coldest slots, and knows 256
  cache->Clear();
  // The former warmest slots get experts that were never used.
  std::vector<ExpertUses> profile;
  for (int i = 0; i < 300; ++i) {
    profile.push_back({0, i < 44 ? 400 + i : i - 44, static_cast<uint64_t>(1000 - i)});
  }
  for (const Admission& admission : cache->PlanFilling(profile)) cache->Publish(admission);
  EXPECT_EQ(cache->policy_name(), "recency");
  Use(*cache, {{0, 500}});
  const auto admissions = cache->PlanAdmissions(1);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].expert, 500);
  EXPECT_GE(admissions[0].evicted_expert, 400) << "an expert that was used had to go";
}

// Every operation in random order against a plain model of what must hold.
class Model {
 public:
  Model(CacheShape shape, std::string_view policy, uint64_t seed)
      : shape_(std::move(shape)), random_(seed) {
    PolicyOptions options;
    for (int expert = 0; expert < shape_.n_experts; ++expert) {
      options.profile.push_back({expert % shape_.n_layers, expert, 1 + random_() % 9});
    }
    auto made = ExpertCache::Create(shape_, policy, options);
    EXPECT_OK(made);
    cache_ = *std::move(made);
  }

  void Operate() {
    switch (random_() % 16) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
        return RecordStep();
      case 6:
      case 7:
      case 8:
      case 9:
        return Plan();
      case 10:
      case 11:
      case 12:
        return EndCopy(true);
      case 13:
        return EndCopy(random_() % 4 != 0);
      case 14:
        return RecordPromptOrPrediction();
      default:
        if (random_() % 20 == 0) Clear();
    }
  }

  void Check() const {
    std::set<int> slots;
    for (int layer = 0; layer < shape_.n_layers; ++layer) {
      for (int expert = 0; expert < shape_.n_experts; ++expert) {
        const auto found = resident_.find({layer, expert});
        const int slot = cache_->SlotOf(layer, expert);
        ASSERT_EQ(slot, found == resident_.end() ? -1 : found->second);
        if (slot >= 0) {
          ASSERT_TRUE(slots.insert(slot).second) << "two experts in slot " << slot;
        }
      }
    }
    for (const auto& [admission, is_stale] : copies_) {
      ASSERT_TRUE(slots.insert(admission.slot).second) << "slot in use: " << admission.slot;
    }
    const CacheStatistics statistics = cache_->Statistics();
    ASSERT_EQ(statistics.slots_resident, static_cast<int>(resident_.size()));
    ASSERT_EQ(statistics.slots_loading, static_cast<int>(copies_.size()));
    ASSERT_EQ(statistics.slots_free, shape_.n_slots - static_cast<int>(slots.size()));
    uint64_t hits = 0, misses = 0, admissions = 0, evictions = 0;
    for (const LayerCounts& layer : statistics.layers) {
      hits += layer.hits, misses += layer.misses;
      admissions += layer.admissions, evictions += layer.evictions;
    }
    ASSERT_EQ(hits, hits_);
    ASSERT_EQ(misses, misses_);
    ASSERT_EQ(admissions, admissions_);
    ASSERT_EQ(evictions, evictions_);
    ASSERT_EQ(statistics.abandoned, abandoned_);
  }

  uint64_t evictions() const { return evictions_; }
  uint64_t hits() const { return hits_; }

 private:
  std::vector<ExpertUse> RandomUses() {
    std::set<std::pair<int, int>> chosen;
    for (int i = 0; i < 6; ++i) {  // low ids more often
      const int expert = static_cast<int>(random_() % (random_() % 2 == 0 ? 3 : shape_.n_experts));
      chosen.insert({static_cast<int>(random_() % static_cast<unsigned>(shape_.n_layers)), expert});
    }
    std::vector<ExpertUse> uses;
    uses.reserve(chosen.size());
    for (const auto& [layer, expert] : chosen) uses.push_back({layer, expert, 1});
    return uses;
  }
  void RecordStep() {
    const auto uses = RandomUses();
    for (const ExpertUse& use : uses)
      ++(resident_.contains({use.layer, use.expert}) ? hits_ : misses_);
    cache_->RecordStep(uses);
  }
  void RecordPromptOrPrediction() {
    if (random_() % 2 == 0) return cache_->RecordPrompt(RandomUses(), 6);
    const int32_t ids[] = {0, 2};
    cache_->RecordPrediction(0, ids);
  }
  void Plan() {
    const int at_most = static_cast<int>(random_() % 4);
    const auto admissions = cache_->PlanAdmissions(at_most);
    ASSERT_LE(static_cast<int>(admissions.size()), at_most);
    for (const Admission& admission : admissions) {
      if (admission.evicted_layer >= 0) {
        const auto evicted = resident_.find({admission.evicted_layer, admission.evicted_expert});
        ASSERT_NE(evicted, resident_.end());
        ASSERT_EQ(evicted->second, admission.slot);
        resident_.erase(evicted);
        ++evictions_;
      }
      ASSERT_FALSE(resident_.contains({admission.layer, admission.expert}));
      copies_.push_back({admission, false});
    }
  }
  void EndCopy(bool succeeds) {
    if (copies_.empty()) return;
    const size_t i = random_() % copies_.size();
    const auto [admission, is_stale] = copies_[i];
    copies_.erase(copies_.begin() + static_cast<int64_t>(i));
    if (succeeds) {
      ASSERT_EQ(cache_->Publish(admission), !is_stale);
    } else {
      cache_->Abandon(admission);
    }
    if (succeeds && !is_stale) {
      resident_[{admission.layer, admission.expert}] = admission.slot;
      ++admissions_;
    } else {
      ++abandoned_;
    }
  }
  void Clear() {
    cache_->Clear();
    resident_.clear();
    for (auto& copy : copies_) copy.second = true;
  }

  const CacheShape shape_;
  std::mt19937_64 random_;
  std::unique_ptr<ExpertCache> cache_;
  std::map<std::pair<int, int>, int> resident_;     // (layer, expert) -> slot
  std::vector<std::pair<Admission, bool>> copies_;  // and whether they are stale
  uint64_t hits_ = 0, misses_ = 0, admissions_ = 0, evictions_ = 0, abandoned_ = 0;
};

class ExpertCacheProperty : public ::testing::TestWithParam<std::string_view> {};

TEST_P(ExpertCacheProperty, AgreesWithAPlainModelAfterEveryOperation) {
  const uint64_t seed =
      ::testing::UnitTest::GetInstance()->random_seed() != 0
          ? static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed())
          : 1;
  SCOPED_TRACE(seed);
  Model model({.n_layers = 3, .n_experts = 10, .n_slots = 7}, GetParam(), seed);
  for (int i = 0; i < 10000; ++i) {
    SCOPED_TRACE(i);
    model.Operate();
    model.Check();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(model.hits(), 100u);
  if (GetParam() != "profile") {
    EXPECT_GT(model.evictions(), 50u);
  }
}

std::vector<std::string_view> Names() { return {PolicyNames().begin(), PolicyNames().end()}; }
INSTANTIATE_TEST_SUITE_P(Policies, ExpertCacheProperty, ::testing::ValuesIn(Names()),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace hearth::worker
