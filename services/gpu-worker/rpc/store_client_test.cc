// The client against a store under the test's control, over a Unix socket; segments are real files.
#include "services/gpu-worker/rpc/store_client.h"

#include <grpcpp/server_builder.h>

#include <thread>

#include "common/experts/testing.h"
#include "common/rpc/status.h"

namespace hearth::worker {
namespace {

using namespace std::chrono_literals;
using namespace hearth::testing;  // NOLINT: test helpers
using ::testing::HasSubstr;

constexpr char kFingerprint[] = "0123abcd";

// Attaches to `segment`, or is loading.
class FakeStore final : public v1::ExpertStore::Service {
 public:
  FakeStore(const std::filesystem::path& socket, std::string instance, std::string segment)
      : segment_(std::move(segment)), instance_(std::move(instance)) {
    std::filesystem::remove(socket);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket.string(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeStore() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status Attach(grpc::ServerContext*, const v1::AttachRequest* request,
                      v1::AttachResponse* response) override {
    ++n_attaches;
    const std::lock_guard lock(mutex_);
    if (!refusal_.ok()) return ToGrpc(refusal_);
    EXPECT_EQ(request->worker_id(), "worker-1");
    EXPECT_EQ(request->expected_fingerprint(), kFingerprint);
    response->set_segment_path(segment_);
    response->set_store_instance(instance_);
    return grpc::Status::OK;
  }
  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*,
                        v1::DescribeResponse* response) override {
    const std::lock_guard lock(mutex_);
    response->set_store_instance(instance_);
    return grpc::Status::OK;
  }
  grpc::Status WatchLoading(grpc::ServerContext*, const v1::WatchLoadingRequest*,
                            grpc::ServerWriter<v1::LoadingProgress>* writer) override {
    v1::LoadingProgress progress;
    progress.set_bytes_done(1);
    progress.set_bytes_total(4);
    progress.set_message("a quarter");
    if (loading_fails) {
      progress.set_state(v1::LOADING_STATE_FAILED);
      progress.set_message("open /models/secret/config.json: No such file");
    }
    writer->Write(progress);
    return grpc::Status::OK;
  }
  grpc::Status GetProfile(grpc::ServerContext*, const v1::GetProfileRequest*,
                          v1::Profile* profile) override {
    if (++n_profiles <= n_empty_profiles) return grpc::Status::OK;
    v1::ExpertUsage* usage = profile->add_usage();
    usage->set_layer(1);
    usage->set_expert(3);
    usage->set_count(static_cast<uint64_t>(n_profiles));
    return grpc::Status::OK;
  }
  grpc::Status ReportUsage(grpc::ServerContext*, const v1::ReportUsageRequest* request,
                           v1::ReportUsageResponse*) override {
    for (const auto& usage : request->usage()) n_uses += static_cast<int>(usage.count());
    return grpc::Status::OK;
  }
  void Refuse(absl::Status status) {
    const std::lock_guard lock(mutex_);
    refusal_ = std::move(status);
  }

  // As a restart that falls between two probes looks.
  void BecomeInstance(const std::string& instance) {
    const std::lock_guard lock(mutex_);
    instance_ = instance;
  }

  std::atomic<int> n_attaches{0}, n_uses{0}, n_profiles{0}, n_empty_profiles{0};
  std::atomic<bool> loading_fails{false};

 private:
  const std::string segment_;
  std::mutex mutex_;
  std::string instance_;  // guarded by mutex_
  absl::Status refusal_;  // guarded by mutex_
  std::unique_ptr<grpc::Server> server_;
};

class StoreClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    state_.Set(v1::WORKER_STATE_WAITING_FOR_STORE, "waiting", 0.4);
    WriteSegment();
  }
  void WriteSegment() {
    ASSERT_OK_AND_ASSIGN(const auto writer,
                         SegmentWriter::Create(segment_, TestPlan(kFingerprint)));
    FillAll(*writer);
  }
  std::unique_ptr<FakeStore> Store(const std::string& instance) {
    return std::make_unique<FakeStore>(socket_, instance, segment_.string());
  }
  void StartClient() {
    client_ = std::make_unique<StoreClient>(
        StoreClientOptions{.address = "unix:" + socket_.string(),
                           .worker_id = "worker-1",
                           .fingerprint = kFingerprint,
                           .probe_interval = 20ms,
                           .report_interval = 20ms,
                           .profile_interval = profile_interval_,
                           .tier = tier_},
        &state_, &experts_,
        [this] {
          at_attach_();
          ++n_attached_;
        },
        [this](const absl::Status& why) {
          const std::lock_guard lock(mutex_);
          refusals_.push_back(why);
        });
  }
  std::vector<absl::Status> refusals() {
    const std::lock_guard lock(mutex_);
    return refusals_;
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + 20s;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
  const std::byte* FirstExpert() {
    experts_.BeginStep();
    const auto expert = experts_.Get(0, 0);
    EXPECT_OK(expert);
    ExpectSameExpert(*expert, FakeExpert(SeedOf(0, 0)));
    return static_cast<const std::byte*>(expert->gate.data);
  }

  TempFolder folder_{"/dev/shm"};
  const std::filesystem::path socket_ = folder_ / "store.sock";
  const std::filesystem::path segment_ = folder_ / "segment";
  ServingState state_;
  AttachedExperts experts_{3, 4};
  ExpertTier* tier_ = nullptr;               // borrowed by the client
  std::function<void()> at_attach_ = [] {};  // on the client's thread
  std::chrono::milliseconds profile_interval_{20};
  std::atomic<int> n_attached_{0};
  std::mutex mutex_;
  std::vector<absl::Status> refusals_;   // guarded by mutex_
  std::unique_ptr<StoreClient> client_;  // last: its thread uses the others
};

TEST_F(StoreClientTest, AttachesToAStoreThatComesLaterAndReportsUses) {
  StartClient();
  const auto store = Store("first");
  ASSERT_TRUE(Eventually([&] { return n_attached_ == 1; }));
  EXPECT_TRUE(state_.store_connected());
  EXPECT_TRUE(state_.experts_attached());
  FirstExpert();
  FirstExpert();
  EXPECT_TRUE(Eventually([&] { return store->n_uses == 2; }));
}

TEST_F(StoreClientTest, TierReportsItsUsesAndGetsTheStoresProfile) {
  const CacheShape shape{.n_layers = 3, .n_experts = 4, .n_slots = 1};
  TierBoard board(shape, {}, 100, {});
  ASSERT_OK_AND_ASSIGN(const auto cache, ExpertCache::Create(shape, "lru"));
  tier_ = &board;
  const auto store = Store("first");
  size_t n_at_attach = 0;
  at_attach_ = [&] { n_at_attach = board.profile().size(); };
  StartClient();
  ASSERT_TRUE(Eventually([&] { return n_attached_ == 1; }));
  EXPECT_EQ(n_at_attach, 1u);  // before anything is served
  const ExpertUse use[] = {{2, 1, 7}};
  cache->RecordStep(use);
  ASSERT_TRUE(Eventually([&] {
    board.Sync(cache.get(), {});
    return store->n_uses == 7;
  }));
  EXPECT_TRUE(Eventually([&] { return store->n_profiles >= 3; }));  // it grows: asked for again
  ASSERT_OK(board.SetPolicy("profile"));
  board.Sync(cache.get(), {});
  const auto admissions = cache->PlanAdmissions(1);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].layer, 1);
  EXPECT_EQ(admissions[0].expert, 3);
  client_.reset();
}

TEST_F(StoreClientTest, ProfileWithoutCountsIsAskedForAgainSoon) {
  const CacheShape shape{.n_layers = 3, .n_experts = 4, .n_slots = 1};
  TierBoard board(shape, {}, 100, {});
  tier_ = &board;
  profile_interval_ = 1h;
  const auto store = Store("first");
  store->n_empty_profiles = 2;
  StartClient();
  EXPECT_TRUE(Eventually([&] { return board.SetPolicy("profile").ok(); }));
  EXPECT_EQ(store->n_profiles, 3);
  client_.reset();
}

TEST_F(StoreClientTest, LoadingStoresProgressIsShownUntilItIsReady) {
  const auto store = Store("first");
  store->Refuse(absl::UnavailableError("loading"));
  StartClient();
  ASSERT_TRUE(
      Eventually([&] { return state_.Status().message() == "the expert store: a quarter"; }));
  EXPECT_NEAR(state_.Status().loading_fraction(), 0.55, 1e-9);
  EXPECT_FALSE(state_.experts_attached());
  store->Refuse(absl::OkStatus());
  EXPECT_TRUE(Eventually([&] { return n_attached_ == 1; }));
}

TEST_F(StoreClientTest, LostStoreLeavesTheExpertsAndIsAttachedAgainWithTheSameMapping) {
  auto store = Store("first");
  StartClient();
  ASSERT_TRUE(Eventually([&] { return n_attached_ == 1; }));
  const std::byte* before = FirstExpert();
  store.reset();
  ASSERT_TRUE(Eventually([&] { return !state_.store_connected(); }));
  EXPECT_TRUE(state_.experts_attached());
  EXPECT_EQ(FirstExpert(), before);
  store = Store("second");
  ASSERT_TRUE(Eventually([&] { return n_attached_ == 2; }));
  EXPECT_TRUE(state_.store_connected());
  EXPECT_EQ(FirstExpert(), before) << "an adopted segment need not be mapped again";
}

TEST_F(StoreClientTest, RestartBetweenTwoProbesIsNoticedByItsInstance) {
  const auto store = Store("first");
  StartClient();
  ASSERT_TRUE(Eventually([&] { return n_attached_ == 1; }));
  store->BecomeInstance("second");
  EXPECT_TRUE(Eventually([&] { return n_attached_ == 2; }));
}

TEST_F(StoreClientTest, ReplacedSegmentIsMappedAndTheOldOneServesUntilTheNextStep) {
  auto store = Store("first");
  StartClient();
  ASSERT_TRUE(Eventually([&] { return n_attached_ == 1; }));
  const std::byte* before = FirstExpert();
  store.reset();
  std::filesystem::remove(segment_);
  WriteSegment();
  store = Store("second");
  ASSERT_TRUE(Eventually([&] { return n_attached_ == 2; }));
  EXPECT_EQ(static_cast<const std::byte*>(experts_.Get(0, 0)->gate.data), before);
  EXPECT_NE(FirstExpert(), before);
}

TEST_F(StoreClientTest, AnotherModelsStoreIsRefusedOnceAtTheStart) {
  const auto store = Store("first");
  store->Refuse(absl::FailedPreconditionError("this store holds another model"));
  StartClient();
  ASSERT_TRUE(Eventually([&] { return store->n_attaches >= 3; }));
  ASSERT_EQ(refusals().size(), 1u);
  EXPECT_THAT(refusals()[0],
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("another model")));
  EXPECT_FALSE(state_.experts_attached());
}

TEST_F(StoreClientTest, AnotherModelsStoreLaterEndsNothing) {
  const auto store = Store("first");
  StartClient();
  ASSERT_TRUE(Eventually([&] { return n_attached_ == 1; }));
  const std::byte* before = FirstExpert();
  store->Refuse(absl::FailedPreconditionError("this store holds another model"));
  store->BecomeInstance("second");
  ASSERT_TRUE(Eventually([&] { return store->n_attaches >= 3; }));
  EXPECT_TRUE(refusals().empty());
  EXPECT_EQ(FirstExpert(), before);
}

TEST_F(StoreClientTest, SegmentOfAnotherModelIsRefusedByTheWorkerItself) {
  std::filesystem::remove(segment_);
  {
    ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::Create(segment_, TestPlan("deadbeef")));
    FillAll(*writer);
  }
  const auto store = Store("first");
  StartClient();
  ASSERT_TRUE(Eventually([&] { return !refusals().empty(); }));
  EXPECT_THAT(refusals()[0],
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("deadbeef")));
  EXPECT_FALSE(experts_.has_segment());
}

TEST_F(StoreClientTest, TheMessageThatClientsReadNamesNoPathWhenExpertsCantBeUsed) {
  const auto says_no_experts = [&] {
    return state_.Status().message().find("has no experts that can be used") != std::string::npos;
  };
  const auto store = Store("first");
  std::filesystem::remove(segment_);
  StartClient();
  ASSERT_TRUE(Eventually(says_no_experts)) << state_.Status().message();
  EXPECT_EQ(state_.Status().message().find('/'), std::string::npos) << state_.Status().message();

  store->Refuse(absl::UnavailableError("loading"));
  ASSERT_TRUE(
      Eventually([&] { return state_.Status().message() == "the expert store: a quarter"; }));
  store->loading_fails = true;
  ASSERT_TRUE(Eventually(says_no_experts)) << state_.Status().message();
  EXPECT_EQ(state_.Status().message().find('/'), std::string::npos) << state_.Status().message();
}

TEST_F(StoreClientTest, EndsAtOnceWhileNothingAnswers) {
  StartClient();
  const auto start = std::chrono::steady_clock::now();
  client_.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, 2s);
}

}  // namespace
}  // namespace hearth::worker
