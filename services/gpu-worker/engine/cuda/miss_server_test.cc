// The CPU's half of the exchange, with the test in the GPU's place: no device is needed.
#include "services/gpu-worker/engine/cuda/miss_server.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "common/testing/compare.h"
#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/ops/exact_ops.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;
using Floats = std::vector<float>;

constexpr int kMaxRows = 4, kTopK = 4, kWidth = 128;  // as tiny-a's

// Gives experts until one is asked for that is not here.
class SomeExperts final : public ExpertSource {
 public:
  explicit SomeExperts(const Checkpoint* checkpoint) : all_(checkpoint) {}
  absl::StatusOr<ExpertRef> Get(int layer, int expert) override {
    ++n_gets;
    if (expert == not_here) return absl::UnavailableError("it is being loaded");
    return all_.Get(layer, expert);
  }
  int not_here = -1, n_gets = 0;

 private:
  CheckpointExperts all_;
};

class MissServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto checkpoint = Checkpoint::Open(std::filesystem::path(hearth::testing::SourceDir()) /
                                       "tests/golden/tiny-a");
    ASSERT_OK(checkpoint);
    checkpoint_ = *std::move(checkpoint);
    experts_ = std::make_unique<SomeExperts>(checkpoint_.get());
    h_.resize(kMaxRows * kWidth);
    for (size_t i = 0; i < h_.size(); ++i) h_[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
    Start(0);
  }

  void Start(uint32_t ticket, uint64_t await_nanoseconds = 20'000'000'000) {
    request_.ticket = request_.answer = ticket;
    misses_.resize(kMaxRows * kTopK);
    sums_.assign(kMaxRows * kWidth, 7);
    const Exchange exchange{.request = &request_,
                            .misses = misses_.data(),
                            .h = h_.data(),
                            .sums = sums_.data(),
                            .counters = nullptr,
                            .await_nanoseconds = await_nanoseconds};
    server_ = MissServer::Over(
        exchange, {.max_rows = kMaxRows, .top_k = kTopK, .n_experts = 64, .width = kWidth}, &ops_,
        &parallel_, experts_.get());
  }

  // As the GPU does it: the ticket last.
  void Ask(int layer, int n_rows, const std::vector<MissedPlace>& misses) {
    request_.layer = layer, request_.n_rows = n_rows;
    request_.n_misses = static_cast<int32_t>(misses.size());
    std::copy_n(misses.begin(), std::min(misses.size(), misses_.size()), misses_.begin());
    ++request_.ticket;
  }
  // Until the last ticket has been answered; a second time it need not be.
  absl::Status Serve() {
    return server_->ServeUntil(nullptr, [this] { return request_.answer == request_.ticket; });
  }

  Floats Want(int layer, int n_rows, const std::vector<MissedPlace>& misses) {
    Floats want(static_cast<size_t>(n_rows * kWidth), 0), one(kWidth);
    CheckpointExperts source(checkpoint_.get());
    for (const MissedPlace& miss : misses) {
      const int row = miss.place / kTopK;
      const auto expert = source.Get(layer, miss.expert);
      EXPECT_OK(expert);
      ops_.Mlp(*expert, 1, h_.data() + row * kWidth, one.data());
      for (int i = 0; i < kWidth; ++i) {
        want[static_cast<size_t>(row * kWidth + i)] += miss.weight * one[static_cast<size_t>(i)];
      }
    }
    return want;
  }
  Floats Sums(int n_rows) const { return {sums_.begin(), sums_.begin() + n_rows * kWidth}; }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<SomeExperts> experts_;
  Parallel parallel_{2};
  ExactOps ops_{&parallel_};
  MissRequest request_;
  std::vector<MissedPlace> misses_;
  Floats h_, sums_;
  std::unique_ptr<MissServer> server_;
};

TEST_F(MissServerTest, RowsGetTheWeightedSumsOfTheirMisses) {
  // In no order, with a row that shares an expert, one without misses and one with all its places.
  const std::vector<MissedPlace> misses = {{13, 2, 0.5F}, {0, 9, 0.25F},  {12, 4, 0.125F},
                                           {5, 2, 1.5F},  {15, 9, 0.75F}, {14, 15, 2}};
  Ask(2, 4, misses);
  EXPECT_TRUE(server_->has_request());
  ASSERT_OK(Serve());
  EXPECT_FALSE(server_->has_request());
  EXPECT_TRUE(AllClose(Sums(4), Want(2, 4, misses), {.abs = 1e-6, .rel = 1e-5}));
  EXPECT_EQ(Sums(4)[2 * kWidth], 0);  // row 2
  EXPECT_EQ(experts_->n_gets, 4);     // each once
  EXPECT_EQ(server_->counts().experts, 4u);
  // The next request finds nothing of this one.
  const std::vector<MissedPlace> next = {{1, 3, 1}};
  Ask(0, 1, next);
  ASSERT_OK(Serve());
  EXPECT_TRUE(AllClose(Sums(1), Want(0, 1, next), {.abs = 1e-6, .rel = 1e-5}));
  EXPECT_EQ(server_->counts().requests, 2u);
}

TEST_F(MissServerTest, TicketsMayWrapAround) {
  Start(~uint32_t{0} - 1);
  for (int i = 0; i < 4; ++i) {
    const std::vector<MissedPlace> misses = {{0, i, 1}};
    Ask(1, 1, misses);
    ASSERT_OK(Serve());
    EXPECT_TRUE(AllClose(Sums(1), Want(1, 1, misses), {.abs = 1e-6, .rel = 1e-5}));
  }
  EXPECT_EQ(request_.answer, 2u);
}

TEST_F(MissServerTest, AnExpertThatIsMissingGivesZerosAndItsErrorOnce) {
  experts_->not_here = 5;
  Ask(0, 2, {{0, 4, 1}, {1, 5, 1}});
  EXPECT_THAT(Serve(), IsStatus(absl::StatusCode::kUnavailable, HasSubstr("being loaded")));
  EXPECT_EQ(Sums(2), Floats(2 * kWidth, 0.F));
  EXPECT_EQ(request_.answer, request_.ticket);
  Ask(0, 1, {{0, 4, 1}});
  EXPECT_OK(Serve());
}

TEST_F(MissServerTest, AnInterruptEndsWithCancelled) {
  parallel_.set_interrupted(true);
  Ask(0, 1, {{0, 4, 1}});
  EXPECT_THAT(Serve(), IsStatus(absl::StatusCode::kCancelled, ::testing::_));
  EXPECT_EQ(request_.answer, request_.ticket);
  parallel_.set_interrupted(false);
  Ask(0, 1, {{0, 4, 1}});
  EXPECT_OK(Serve());
}

TEST_F(MissServerTest, AWaitThatTimedOutIsAnError) {
  request_.failed = 1;
  Ask(0, 1, {{0, 4, 1}});
  EXPECT_THAT(Serve(), IsStatus(absl::StatusCode::kInternal, HasSubstr("waited too long")));
}

// As a prompt's, whose wait on the GPU begins behind the answer.
TEST_F(MissServerTest, AnAnswerThatTookTooLongIsAnErrorThoughNobodyWaited) {
  Start(0, 1);
  Ask(0, 1, {{0, 4, 1}});
  EXPECT_THAT(Serve(), IsStatus(absl::StatusCode::kInternal, HasSubstr("waited too long")));
  EXPECT_EQ(request_.answer, request_.ticket);
  Start(request_.ticket);
  Ask(0, 1, {{0, 4, 1}});
  EXPECT_OK(Serve());
}

// After a wait that timed out the GPU may overwrite a request while it is read.
TEST_F(MissServerTest, RequestsThatMakeNoSenseAreAnsweredWithAnError) {
  const auto expect_refused = [&](int n_rows, const std::vector<MissedPlace>& misses) {
    Ask(0, n_rows, misses);
    EXPECT_THAT(Serve(), IsStatus(absl::StatusCode::kInternal, HasSubstr("asked for")));
    EXPECT_EQ(request_.answer, request_.ticket);
  };
  expect_refused(0, {{0, 1, 1}});
  expect_refused(kMaxRows + 1, {{0, 1, 1}});
  expect_refused(1, {});
  expect_refused(1, std::vector<MissedPlace>(kTopK + 1));
  expect_refused(1, {{kTopK, 1, 1}});
  expect_refused(1, {{-1, 1, 1}});
  EXPECT_EQ(experts_->n_gets, 0);
}

}  // namespace
}  // namespace hearth::worker
