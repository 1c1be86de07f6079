#include "services/gpu-worker/experts/expert_tier.h"

#include "common/testing/status_matchers.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;

const CacheShape kShape{.n_layers = 2, .n_experts = 4, .n_slots = 3};

TEST(TierBoard, ShowsTheCacheAsOfTheLastSync) {
  TierBoard board(kShape, {}, 1000, {{"vram", "expert cache", 3000}});
  EXPECT_EQ(board.Statistics().cache.slots_free, 3);
  EXPECT_EQ(board.Statistics().cache.layers.size(), 2u);
  ASSERT_OK_AND_ASSIGN(const auto cache, ExpertCache::Create(kShape, "lru"));
  const ExpertUse uses[] = {{1, 2, 1}};
  cache->RecordStep(uses);
  EXPECT_EQ(board.Statistics().cache.layers[1].misses, 0u);
  board.Sync(cache.get(), {.pcie_bytes = 5, .cpu_bytes = 7});
  const TierStatistics shown = board.Statistics();
  EXPECT_EQ(shown.cache.layers[1].misses, 1u);
  EXPECT_EQ(shown.cache.policy, "lru");
  EXPECT_EQ(shown.work.pcie_bytes, 5u);
  EXPECT_EQ(shown.work.cpu_bytes, 7u);
  EXPECT_EQ(shown.slot_bytes, 1000u);
  ASSERT_EQ(shown.parts.size(), 1u);
  EXPECT_EQ(shown.parts[0].component, "expert cache");
}

TEST(TierBoard, PolicyIsInForceFromTheNextSyncOn) {
  TierBoard board(kShape, {}, 1000, {});
  ASSERT_OK_AND_ASSIGN(const auto cache, ExpertCache::Create(kShape, "lru"));
  EXPECT_THAT(board.SetPolicy("none"), IsStatus(absl::StatusCode::kInvalidArgument, ::testing::_));
  EXPECT_THAT(board.SetPolicy("profile"),
              IsStatus(absl::StatusCode::kFailedPrecondition, ::testing::_));
  board.Sync(cache.get(), {});
  EXPECT_EQ(cache->policy_name(), "lru");
  EXPECT_TRUE(board.profile().empty());
  board.SetProfile({{0, 1, 5}});
  ASSERT_EQ(board.profile().size(), 1u);
  EXPECT_EQ(board.profile()[0].count, 5u);
  ASSERT_OK(board.SetPolicy("profile"));
  EXPECT_EQ(cache->policy_name(), "lru");
  board.Sync(cache.get(), {});
  EXPECT_EQ(cache->policy_name(), "profile");
  EXPECT_EQ(board.Statistics().cache.policy, "profile");
  const auto admissions = cache->PlanAdmissions(1);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].expert, 1);
}

TEST(TierBoard, AwaitedProfileComesIntoForceWithItsFirstCounts) {
  TierBoard board(kShape, {}, 1000, {});
  ASSERT_OK_AND_ASSIGN(const auto cache, ExpertCache::Create(kShape, "lru"));
  board.AwaitProfile();
  board.SetProfile({});
  board.Sync(cache.get(), {});
  EXPECT_EQ(cache->policy_name(), "lru");
  board.SetProfile({{1, 2, 9}});
  board.Sync(cache.get(), {});
  EXPECT_EQ(cache->policy_name(), "profile");
  // Later counts don't bring it back when somebody chose otherwise.
  ASSERT_OK(board.SetPolicy("prompt"));
  board.SetProfile({{1, 3, 9}});
  board.Sync(cache.get(), {});
  EXPECT_EQ(cache->policy_name(), "prompt");
}

TEST(TierBoard, AnotherPolicyEndsTheWaitForAProfile) {
  TierBoard board(kShape, {}, 1000, {});
  ASSERT_OK_AND_ASSIGN(const auto cache, ExpertCache::Create(kShape, "lru"));
  board.AwaitProfile();
  ASSERT_OK(board.SetPolicy("recency"));
  board.SetProfile({{1, 2, 9}});
  board.Sync(cache.get(), {});
  EXPECT_EQ(cache->policy_name(), "recency");
}

TEST(TierBoard, UsesAreCollectedByTheStepAfterTheyWereAskedFor) {
  TierBoard board(kShape, {}, 1000, {});
  ASSERT_OK_AND_ASSIGN(const auto cache, ExpertCache::Create(kShape, "lru"));
  const ExpertUse uses[] = {{1, 2, 5}};
  cache->RecordStep(uses);
  board.Sync(cache.get(), {});
  EXPECT_TRUE(board.TakeUses().empty());
  cache->RecordStep(uses);
  board.Sync(cache.get(), {});
  const auto taken = board.TakeUses();
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].layer, 1);
  EXPECT_EQ(taken[0].count, 10u);
  board.Sync(cache.get(), {});
  EXPECT_TRUE(board.TakeUses().empty());
}

}  // namespace
}  // namespace hearth::worker
