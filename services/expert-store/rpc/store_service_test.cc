// The control plane over an in-process channel, on a store whose checkpoint is under the test's
// control.
#include "services/expert-store/rpc/store_service.h"

#include <grpcpp/server_builder.h>

#include <latch>

#include "common/metrics/metrics.h"
#include "common/rpc/status.h"
#include "services/expert-store/loading/fake_checkpoint.h"
#include "services/expert-store/rpc/store_metrics.h"

namespace hearth::store {
namespace {

using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers

class StoreServiceTest : public ::testing::Test {
 protected:
  StoreServiceTest()
      : store_(
            Options(), [this] { return Open(); }, [](const absl::Status&) {}),
        service_(&store_) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = v1::ExpertStore::NewStub(server_->InProcessChannel({}));
    store_.Start();
  }
  ~StoreServiceTest() override {
    LetLoad();
    store_.Stop();
    service_.StopWatching();
    server_->Shutdown();
  }

  // Loading waits at its fifth expert until LetLoad().
  void LetLoad() {
    if (!std::exchange(is_let_, true)) gate_.count_down();
  }

  // All messages of a WatchLoading stream, which ends by itself.
  std::vector<v1::LoadingProgress> Watch(grpc::Status* end) {
    grpc::ClientContext context;
    auto stream = stub_->WatchLoading(&context, {});
    std::vector<v1::LoadingProgress> messages(1);
    while (stream->Read(&messages.back())) messages.emplace_back();
    messages.pop_back();
    *end = stream->Finish();
    return messages;
  }
  absl::Status Attach(v1::AttachRequest request, v1::AttachResponse* response) {
    grpc::ClientContext context;
    return FromGrpc(stub_->Attach(&context, request, response));
  }
  absl::Status Report(std::vector<UseCount> uses) {
    v1::ReportUsageRequest request;
    for (const UseCount& use : uses) {
      auto* usage = request.add_usage();
      usage->set_layer(use.layer);
      usage->set_expert(use.expert);
      usage->set_count(use.count);
    }
    grpc::ClientContext context;
    v1::ReportUsageResponse response;
    return FromGrpc(stub_->ReportUsage(&context, request, &response));
  }
  v1::DescribeResponse Describe() {
    grpc::ClientContext context;
    v1::DescribeResponse response;
    EXPECT_TRUE(stub_->Describe(&context, {}, &response).ok());
    return response;
  }

  std::string bad_module_;  // set before LetLoad

 private:
  StoreOptions Options() {
    StoreOptions options;
    options.segment_path = folder_ / "segment";
    options.profile_path = folder_ / "profile.json";
    return options;
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() {
    auto checkpoint = std::make_unique<FakeCheckpoint>();
    checkpoint->before_read = [this, c = checkpoint.get(), n = 0](int, int) mutable {
      if (++n != 24 + 12 + 1) return;  // planning reads 8 experts of 3, loading the first 4
      gate_.wait();
      c->bad_module = bad_module_;
    };
    return checkpoint;
  }

  TempFolder folder_;
  std::latch gate_{1};
  bool is_let_ = false;
  ExpertStore store_;
  std::unique_ptr<grpc::Server> server_;

 protected:
  StoreService service_;
  std::unique_ptr<v1::ExpertStore::Stub> stub_;
  ExpertStore& store() { return store_; }
};

TEST_F(StoreServiceTest, WatchShowsProgressAndEndsWithReady) {
  grpc::ClientContext context;
  auto stream = stub_->WatchLoading(&context, {});
  v1::LoadingProgress message;
  while (stream->Read(&message) && message.experts_done() < 4) {
  }
  EXPECT_EQ(message.state(), v1::LOADING_STATE_LOADING);
  EXPECT_EQ(message.experts_done(), 4u);
  EXPECT_EQ(message.experts_total(), 8u);
  EXPECT_GT(message.bytes_done(), 0u);
  EXPECT_LT(message.bytes_done(), message.bytes_total());
  LetLoad();
  while (stream->Read(&message)) {
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(message.state(), v1::LOADING_STATE_READY);
  EXPECT_EQ(message.experts_done(), 8u);
}

TEST_F(StoreServiceTest, WatchEndsWithTheReasonWhereLoadingFails) {
  bad_module_ = "model.layers.2.mlp.experts.1.up_proj";
  LetLoad();
  grpc::Status end;
  const auto messages = Watch(&end);
  EXPECT_TRUE(end.ok());
  ASSERT_FALSE(messages.empty());
  EXPECT_EQ(messages.back().state(), v1::LOADING_STATE_FAILED);
  EXPECT_THAT(messages.back().message(), HasSubstr("experts.1.up_proj: NaN"));
  v1::AttachResponse response;
  EXPECT_THAT(Attach({}, &response),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("loading failed")));
}

TEST_F(StoreServiceTest, WatcherThatLeavesOrOutstaysTheServiceIsLetGo) {
  {
    grpc::ClientContext context;
    auto stream = stub_->WatchLoading(&context, {});
    v1::LoadingProgress message;
    ASSERT_TRUE(stream->Read(&message));
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  service_.StopWatching();
  grpc::Status end;
  Watch(&end);
  EXPECT_EQ(end.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(StoreServiceTest, AttachWaitsForTheExpertsAndChecksWhatTheWorkerExpects) {
  v1::AttachResponse response;
  EXPECT_THAT(Attach({}, &response), IsStatus(absl::StatusCode::kUnavailable, HasSubstr("")));
  LetLoad();
  grpc::Status end;
  Watch(&end);
  v1::AttachRequest request;
  request.set_layout_version(kLayoutVersion);
  request.set_expected_fingerprint("0123abcd");
  ASSERT_OK(Attach(request, &response));
  EXPECT_EQ(response.fingerprint(), "0123abcd");
  EXPECT_EQ(response.layout_version(), kLayoutVersion);
  EXPECT_EQ(response.store_instance(), Describe().store_instance());
  ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(response.segment_path(), "0123abcd"));
  EXPECT_EQ(reader->bytes(), response.segment_bytes());
  request.set_expected_fingerprint("ffff");
  EXPECT_THAT(Attach(request, &response),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("needs ffff")));
}

TEST_F(StoreServiceTest, UsageIsCountedCheckedAndReadBack) {
  LetLoad();
  grpc::Status end;
  Watch(&end);
  ASSERT_OK(Report({{0, 1, 3}, {2, 3, 8}}));
  EXPECT_THAT(Report({{0, 1, 3}, {7, 0, 1}}),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("usage.layer 7")));
  grpc::ClientContext context;
  v1::Profile profile;
  ASSERT_TRUE(stub_->GetProfile(&context, {}, &profile).ok());
  EXPECT_EQ(profile.fingerprint(), "0123abcd");
  EXPECT_EQ(profile.tokens(), 4u);
  ASSERT_EQ(profile.usage_size(), 2);
  EXPECT_EQ(profile.usage(0).count(), 3u);
  EXPECT_EQ(profile.usage(1).expert(), 3u);
}

TEST_F(StoreServiceTest, MetricsFollowTheStatus) {
  LetLoad();
  grpc::Status end;
  Watch(&end);
  ASSERT_OK(Report({{0, 1, 3}}));
  StoreMetrics metrics;
  metrics.Refresh(store().status(), service_);
  metrics.Refresh(store().status(), service_);  // counters do not count twice
  const std::string text = RenderMetrics(*metrics.registry());
  EXPECT_THAT(text, HasSubstr("hearth_expert_store_experts{state=\"ready\"} 8"));
  EXPECT_THAT(text, HasSubstr("hearth_expert_store_usage_reports_total 1"));
  EXPECT_THAT(text, HasSubstr("hearth_expert_store_ready 1"));
  EXPECT_THAT(text, HasSubstr("hearth_tier_bytes{"));
}

}  // namespace
}  // namespace hearth::store
