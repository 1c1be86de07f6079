#include "services/gpu-worker/experts/attached_experts.h"

#include "common/experts/testing.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::FakeExpert;
using ::hearth::testing::IsStatus;
using ::hearth::testing::SeedOf;

class AttachedExpertsTest : public ::testing::Test {
 protected:
  static std::shared_ptr<const SegmentReader> Segment() {
    auto writer = SegmentWriter::CreateInMemory(hearth::testing::TestPlan());
    EXPECT_OK(writer);
    hearth::testing::FillAll(**writer);
    auto reader = (*writer)->OpenReader();
    EXPECT_OK(reader);
    return *std::move(reader);
  }
};

TEST_F(AttachedExpertsTest, UnavailableUntilTheFirstStepAfterTheSegment) {
  AttachedExperts experts(3, 4);
  EXPECT_FALSE(experts.has_segment());
  EXPECT_THAT(experts.Get(0, 0), IsStatus(absl::StatusCode::kUnavailable, ::testing::_));
  ASSERT_OK(experts.Offer(Segment()));
  EXPECT_TRUE(experts.has_segment());
  EXPECT_THAT(experts.Get(0, 0), IsStatus(absl::StatusCode::kUnavailable, ::testing::_));
  experts.BeginStep();
  ASSERT_OK_AND_ASSIGN(const ExpertRef expert, experts.Get(2, 3));
  hearth::testing::ExpectSameExpert(expert, FakeExpert(SeedOf(2, 3)));
  EXPECT_THAT(experts.Get(3, 0), IsStatus(absl::StatusCode::kNotFound, ::testing::_));
  EXPECT_THAT(experts.Get(0, -1), IsStatus(absl::StatusCode::kNotFound, ::testing::_));
}

TEST_F(AttachedExpertsTest, FormerSegmentStaysForTheStepThatUsesIt) {
  AttachedExperts experts(3, 4);
  ASSERT_OK(experts.Offer(Segment()));
  experts.BeginStep();
  ASSERT_OK_AND_ASSIGN(const ExpertRef before, experts.Get(0, 1));
  ASSERT_OK(experts.Offer(Segment()));
  hearth::testing::ExpectSameExpert(before, FakeExpert(SeedOf(0, 1)));
  ASSERT_OK_AND_ASSIGN(const ExpertRef same_step, experts.Get(0, 1));
  EXPECT_EQ(same_step.gate.data, before.gate.data);
  experts.BeginStep();
  ASSERT_OK_AND_ASSIGN(const ExpertRef after, experts.Get(0, 1));
  EXPECT_NE(after.gate.data, before.gate.data);
}

TEST_F(AttachedExpertsTest, ASegmentThatIsHeldStaysWhenAnotherReplacesIt) {
  AttachedExperts experts(3, 4);
  EXPECT_EQ(experts.Hold(), nullptr);
  std::shared_ptr<const SegmentReader> first = Segment();
  const std::weak_ptr<const SegmentReader> watched = first;
  ASSERT_OK(experts.Offer(std::move(first)));
  experts.BeginStep();
  std::shared_ptr<const void> held = experts.Hold();
  const std::span<const std::byte> memory = experts.Memory();
  const std::byte byte = memory.front();
  ASSERT_OK(experts.Offer(Segment()));
  experts.BeginStep();
  EXPECT_NE(experts.Memory().data(), memory.data());
  EXPECT_EQ(memory.front(), byte);  // still mapped
  EXPECT_FALSE(watched.expired());
  held.reset();
  EXPECT_TRUE(watched.expired());
}

TEST_F(AttachedExpertsTest, SegmentOfAnotherModelIsRefused) {
  AttachedExperts experts(3, 5);
  EXPECT_THAT(experts.Offer(Segment()),
              IsStatus(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("of 4 experts")));
}

TEST_F(AttachedExpertsTest, TilesAreRefusedWherePlainExpertsAreNeeded) {
  SegmentPlan plan = hearth::testing::TestPlan();
  plan.expert_layout = kTiledExperts;  // the fake experts' shapes leave them as they are
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::CreateInMemory(plan));
  hearth::testing::FillAll(*writer);
  AttachedExperts experts(3, 4, /*needs_plain=*/true), any(3, 4);
  ASSERT_OK_AND_ASSIGN(auto tiled, writer->OpenReader());
  EXPECT_THAT(experts.Offer(std::move(tiled)),
              IsStatus(absl::StatusCode::kFailedPrecondition, ::testing::HasSubstr("--exact")));
  EXPECT_OK(experts.Offer(Segment()));
  ASSERT_OK_AND_ASSIGN(auto again, writer->OpenReader());
  EXPECT_OK(any.Offer(std::move(again)));
}

TEST_F(AttachedExpertsTest, MeanSizeIsOfTheLayersThatHaveExperts) {
  AttachedExperts experts(3, 4);
  EXPECT_EQ(experts.mean_expert_bytes(), 0u);
  ASSERT_OK(experts.Offer(Segment()));  // layer 1 has none
  EXPECT_EQ(experts.mean_expert_bytes(), experts.segment_bytes() / 8);
}

TEST_F(AttachedExpertsTest, UsesAreCountedAndTakenOnce) {
  AttachedExperts experts(3, 4);
  ASSERT_OK(experts.Offer(Segment()));
  experts.BeginStep();
  for (int i = 0; i < 3; ++i) EXPECT_OK(experts.Get(2, 1));
  EXPECT_OK(experts.Get(0, 3));
  const auto uses = experts.TakeUses();
  ASSERT_EQ(uses.size(), 2u);
  EXPECT_EQ(uses[0].layer, 0);
  EXPECT_EQ(uses[0].expert, 3);
  EXPECT_EQ(uses[1].layer, 2);
  EXPECT_EQ(uses[1].count, 3u);
  EXPECT_TRUE(experts.TakeUses().empty());
  EXPECT_EQ(experts.UsesByLayer(), (std::vector<uint64_t>{1, 0, 3}));
}

}  // namespace
}  // namespace hearth::worker
