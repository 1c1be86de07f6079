#include "services/expert-store/loading/loader.h"

#include <chrono>

#include "services/expert-store/loading/fake_checkpoint.h"
#include "services/expert-store/loading/rate_limiter.h"

namespace hearth::store {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers

TEST(Loader, EveryExpertArrivesAsTheCheckpointHasIt) {
  const FakeCheckpoint checkpoint;
  for (const int n_threads : {1, 3}) {
    ASSERT_OK_AND_ASSIGN(const auto reader, LoadIntoMemory(checkpoint, n_threads));
    EXPECT_EQ(reader->fingerprint(), "0123abcd");
    for (const int layer : {0, 2}) {
      for (int e = 0; e < 4; ++e) {
        ASSERT_OK_AND_ASSIGN(const ExpertRef got, reader->Expert(layer, e));
        ExpectSameExpert(got, FakeExpert(SeedOf(layer, e)));
      }
    }
    EXPECT_THAT(reader->Expert(1, 0),
                IsStatus(absl::StatusCode::kNotFound, HasSubstr("no experts")));
  }
}

TEST(Loader, ModelWithoutExpertsLoads) {
  FakeCheckpoint checkpoint;
  for (auto& layer : checkpoint.mutable_config().layers) layer.has_experts = false;
  ASSERT_OK_AND_ASSIGN(const auto reader, LoadIntoMemory(checkpoint, 2));
  EXPECT_EQ(reader->n_experts(), 0);
  EXPECT_EQ(reader->n_layers(), 3);
}

TEST(Loader, ExpertsOfAMultiTokenPredictionHeadFollowTheModels) {
  FakeCheckpoint checkpoint;
  checkpoint.with_mtp = true;
  ASSERT_OK_AND_ASSIGN(const auto reader, LoadIntoMemory(checkpoint, 2));
  EXPECT_EQ(reader->n_layers(), 4);
  for (int e = 0; e < 4; ++e) {
    ASSERT_OK_AND_ASSIGN(const ExpertRef got, reader->Expert(3, e));
    ExpectSameExpert(got, FakeExpert(SeedOf(3, e)));
  }
  checkpoint.bad_module = "mtp.layers.0.mlp.experts.2.down_proj";
  EXPECT_THAT(LoadIntoMemory(checkpoint, 2),
              IsStatus(absl::StatusCode::kDataLoss, HasSubstr(checkpoint.bad_module)));
}

TEST(Loader, BadTensorIsNamedWhateverTheNumberOfThreads) {
  FakeCheckpoint checkpoint;
  checkpoint.bad_module = "model.layers.2.mlp.experts.1.up_proj";
  for (const int n_threads : {1, 4}) {
    EXPECT_THAT(LoadIntoMemory(checkpoint, n_threads),
                IsStatus(absl::StatusCode::kDataLoss,
                         HasSubstr("fake.safetensors: model.layers.2.mlp.experts.1.up_proj")));
  }
}

TEST(Loader, ProgressCountsUpToTheTotal) {
  const FakeCheckpoint checkpoint;
  ASSERT_OK_AND_ASSIGN(const SegmentPlan plan, PlanExperts(checkpoint, 2));
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::CreateInMemory(plan));
  std::vector<LoadProgress> seen;
  ASSERT_OK(LoadExperts(checkpoint, *writer, {.n_threads = 3},
                        [&](const LoadProgress& p) { seen.push_back(p); }));
  ASSERT_EQ(seen.size(), 9u);
  for (size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i].experts_done, i);
  EXPECT_EQ(seen.back().experts_total, 8u);
  EXPECT_EQ(seen.back().bytes_done, seen.back().bytes_total);
  EXPECT_GT(seen.back().bytes_total, 0u);
}

TEST(Loader, StopEndsLoadingAndWhatWasPublishedIsKeptTheNextTime) {
  FakeCheckpoint checkpoint;
  ASSERT_OK_AND_ASSIGN(const SegmentPlan plan, PlanExperts(checkpoint, 1));
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::CreateInMemory(plan));
  std::stop_source stop;
  const auto stop_at_three = [&](const LoadProgress& p) {
    if (p.experts_done == 3) stop.request_stop();
  };
  EXPECT_THAT(LoadExperts(checkpoint, *writer, {}, stop_at_three, stop.get_token()),
              IsStatus(absl::StatusCode::kCancelled, HasSubstr("")));
  EXPECT_EQ(writer->CountStates().ready, 3u);
  ASSERT_OK_AND_ASSIGN(const LoadSummary summary, LoadExperts(checkpoint, *writer, {}));
  EXPECT_EQ(summary.n_kept, 3u);
  EXPECT_EQ(summary.n_loaded, 5u);
  EXPECT_OK(writer->MarkReady());
}

TEST(Loader, ChangedSizeSinceThePlanIsRefused) {
  FakeCheckpoint checkpoint;
  SegmentPlan plan = *PlanExperts(checkpoint, 1);
  plan.payload_bytes[3] += 64;
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::CreateInMemory(plan));
  EXPECT_THAT(
      LoadExperts(checkpoint, *writer, {}),
      IsStatus(absl::StatusCode::kFailedPrecondition,
               AllOf(HasSubstr("model.layers.0.mlp.experts.3"), HasSubstr("reserved are"))));
}

TEST(RateLimiter, BytesTakeTheirTimeAndStopEndsTheWait) {
  RateLimiter limiter(1'000'000);
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(limiter.Acquire(50'000, {}));  // paid for by the next one
  ASSERT_TRUE(limiter.Acquire(1'000'000'000, {}));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(49));
  std::stop_source stop;
  stop.request_stop();
  EXPECT_FALSE(limiter.Acquire(1, stop.get_token()));  // would wait for a quarter of an hour
  EXPECT_TRUE(RateLimiter(0).Acquire(uint64_t{1} << 60, {}));
}

}  // namespace
}  // namespace hearth::store
