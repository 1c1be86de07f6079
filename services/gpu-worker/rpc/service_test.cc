// The service over an in-process channel, on the scheduler's small deterministic engine.
#include <grpcpp/server_builder.h>

#include "common/rpc/status.h"
#include "services/gpu-worker/rpc/inference_service.h"
#include "services/gpu-worker/rpc/readiness.h"
#include "services/gpu-worker/rpc/testing.h"

namespace hearth::worker {
namespace {

using namespace std::chrono_literals;
using ::hearth::testing::IsStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::kContext;

class ServiceTest : public testing::ServedFakeTest {
 protected:
  ServiceTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = v1::Inference::NewStub(server_->InProcessChannel({}));
  }
  ~ServiceTest() override {
    if (scheduler_ != nullptr) scheduler_->Stop();
    server_->Shutdown();
  }
  static v1::GenerateRequest Greedy(const std::string& text, int max_tokens) {
    v1::GenerateRequest request;
    request.set_text(text);
    request.mutable_sampling()->set_temperature(0);
    request.set_max_tokens(max_tokens);
    return request;
  }
  std::string Oracle(const v1::GenerateRequest& request) {
    return testing::OracleText(*ToRequest(request), kContext);
  }
  absl::StatusOr<GenerationRequest> ToRequest(const v1::GenerateRequest& request) {
    GenerationRequest out;
    HEARTH_ASSIGN_OR_RETURN(out.prompt, tokenizer_.Encode(request.text(), {}));
    out.sampling.temperature = 0;
    out.max_tokens = request.max_tokens();
    if (!request.ignore_eos()) out.stop_ids = {testing::kEos};
    return out;
  }
  // All events of a call, which ends by itself.
  std::vector<v1::GenerateEvent> Generate(const v1::GenerateRequest& request, absl::Status* end) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    std::vector<v1::GenerateEvent> events(1);
    while (reader->Read(&events.back())) events.emplace_back();
    events.pop_back();
    *end = FromGrpc(reader->Finish());
    return events;
  }
  absl::Status EndOf(const v1::GenerateRequest& request) {
    absl::Status end;
    Generate(request, &end);
    return end;
  }
  v1::WorkerStatus Status() {
    grpc::ClientContext context;
    v1::WorkerStatus status;
    EXPECT_TRUE(stub_->GetStatus(&context, {}, &status).ok());
    return status;
  }

  InferenceService service_{&state_};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(ServiceTest, EventsAreStartedThenTheTextThenFinish) {
  Serve();
  v1::GenerateRequest request = Greedy("hello", 12);
  request.set_ignore_eos(true);
  request.set_return_token_ids(true);
  request.mutable_sampling()->set_logprobs(2);
  absl::Status end;
  const auto events = Generate(request, &end);
  ASSERT_OK(end);
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events.front().started().prompt_tokens(), 5);
  std::string text;
  int n_ids = 0, n_logprobs = 0;
  for (size_t i = 1; i + 1 < events.size(); ++i) {
    ASSERT_TRUE(events[i].has_delta());
    text += events[i].delta().text();
    n_ids += events[i].delta().token_ids_size();
    n_logprobs += events[i].delta().logprobs_size();
    for (const auto& logprob : events[i].delta().logprobs()) {
      EXPECT_EQ(logprob.top_size(), 2);
      EXPECT_EQ(logprob.token(), std::string(tokenizer_.TokenBytes(logprob.id())));
    }
  }
  const v1::Finish& finish = events.back().finish();
  EXPECT_EQ(text, Oracle(request));
  EXPECT_EQ(finish.prompt_tokens(), 5);
  EXPECT_EQ(finish.completion_tokens(), 12);
  EXPECT_EQ(finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(n_ids, finish.completion_tokens());
  EXPECT_EQ(n_logprobs, finish.completion_tokens());
}

TEST_F(ServiceTest, LoadingWorkerRefusesWithItsProgressAndAnswersItsStatus) {
  state_.Set(v1::WORKER_STATE_WAITING_FOR_STORE, "waiting", 0.4);
  state_.SetStoreProgress(0.5, "half of the experts");
  EXPECT_THAT(EndOf(Greedy("a", 1)),
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("half of the experts")));
  grpc::ClientContext tokenize, get_model;
  v1::TokenizeResponse ids;
  v1::ModelInfo info;
  EXPECT_EQ(stub_->Tokenize(&tokenize, {}, &ids).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(stub_->GetModel(&get_model, {}, &info).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Status().state(), v1::WORKER_STATE_WAITING_FOR_STORE);
  EXPECT_DOUBLE_EQ(Status().loading_fraction(), 0.7);
}

TEST_F(ServiceTest, RefusedRequestsEndWithOneErrorThatNamesTheField) {
  Serve();
  v1::GenerateRequest request = Greedy("a", 1);
  request.mutable_sampling()->set_top_p(7);
  EXPECT_THAT(EndOf(request), IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("top_p: 7")));
}

TEST_F(ServiceTest, CancelDuringAStepEndsTheCallAtOnceAndTheSequenceAfterIt) {
  Serve();
  engine_.Hold();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Greedy("hello", 100));
  engine_.AwaitHeld();
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);  // the step still stands
  EXPECT_EQ(engine_.n_states(), 1);
  // The server hears of it some time after the client: another step only where it has not yet.
  const auto has_ended = [&] { return Status().n_running() + Status().n_waiting() == 0; };
  do {
    engine_.Allow(1);
  } while (!Within(100ms, has_ended) && engine_.n_steps() < 50);
  EXPECT_LT(engine_.n_steps(), 50);
  EXPECT_EQ(engine_.n_states(), 0);
  EXPECT_EQ(Status().kv_pages_used(), 0u);
}

TEST_F(ServiceTest, FullQueueIsResourceExhausted) {
  SchedulerOptions options;
  options.queue_limit = 0;
  Serve(options);
  engine_.Hold();
  grpc::ClientContext contexts[2];
  const auto one = stub_->Generate(&contexts[0], Greedy("a", 3));
  const auto two = stub_->Generate(&contexts[1], Greedy("b", 3));
  ASSERT_TRUE(Eventually([&] { return Status().n_running() + Status().n_waiting() == 2; }));
  EXPECT_THAT(EndOf(Greedy("c", 3)),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("the limit is 2")));
  engine_.Release();
  v1::GenerateEvent event;
  while (one->Read(&event)) {
  }
  while (two->Read(&event)) {
  }
  EXPECT_TRUE(one->Finish().ok());
  EXPECT_TRUE(two->Finish().ok());
}

TEST_F(ServiceTest, TextCallsUseTheModelsTokenizerAndTemplate) {
  Serve();
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("abc");
    v1::TokenizeResponse response;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_THAT(response.ids(), ElementsAre(1, 2, 3));
  }
  for (const int32_t id : {3, 99}) {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.add_ids(id);
    v1::DetokenizeResponse response;
    const absl::Status status = FromGrpc(stub_->Detokenize(&context, request, &response));
    EXPECT_EQ(response.text(), id == 3 ? "c" : "");
    if (id == 99) {
      EXPECT_THAT(status, IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("tokens: ")));
    }
  }
  grpc::ClientContext apply, get_model;
  v1::ApplyTemplateRequest chat;
  chat.mutable_chat()->add_messages()->set_role("user");
  chat.mutable_chat()->mutable_messages(0)->set_content("hi");
  v1::ApplyTemplateResponse text;
  ASSERT_TRUE(stub_->ApplyTemplate(&apply, chat, &text).ok());
  EXPECT_EQ(text.text(), "user hi ");
  v1::ModelInfo info;
  ASSERT_TRUE(stub_->GetModel(&get_model, {}, &info).ok());
  EXPECT_EQ(info.id(), "fake");
}

TEST_F(ServiceTest, ExpertCacheIsShownAndItsPolicyChanged) {
  const CacheShape shape{.n_layers = 2, .n_experts = 4, .n_slots = 3};
  TierBoard board(shape, {}, 1000, {{"vram", "expert cache", 3000}});
  const auto cache = ExpertCache::Create(shape, "lru");
  ASSERT_OK(cache);
  const ExpertUse uses[] = {{1, 2, 1}, {1, 3, 1}};
  (*cache)->RecordStep(uses);
  (*cache)->Publish((*cache)->PlanAdmissions(1)[0]);
  (*cache)->RecordStep(uses);
  board.Sync(cache->get(), {.pcie_bytes = 1000,
                            .in_place_bytes = 2000,
                            .cpu_bytes = 3000,
                            .cpu_seconds = 0.5,
                            .awaited_seconds = 0.25,
                            .zero_copy_share = 0.125});
  model_.expert_tier = &board;
  Serve();
  const auto change = [&](const std::string& policy) {
    grpc::ClientContext context;
    v1::SetExpertCachePolicyRequest request;
    request.set_policy(policy);
    v1::SetExpertCachePolicyResponse response;
    return FromGrpc(stub_->SetExpertCachePolicy(&context, request, &response));
  };
  const auto show = [&] {
    grpc::ClientContext context;
    v1::ExpertCacheStatus status;
    EXPECT_TRUE(stub_->GetExpertCache(&context, {}, &status).ok());
    return status;
  };
  const v1::ExpertCacheStatus status = show();
  EXPECT_EQ(status.policy(), "lru");
  EXPECT_THAT(status.policies(), ::testing::Contains("profile"));
  EXPECT_EQ(status.slots_free(), 2u);
  EXPECT_EQ(status.slots_resident(), 1u);
  EXPECT_EQ(status.slot_bytes(), 1000u);
  ASSERT_EQ(status.layers_size(), 2);
  EXPECT_EQ(status.layers(1).layer(), 1u);
  EXPECT_EQ(status.layers(1).hits(), 1u);
  EXPECT_EQ(status.layers(1).misses(), 3u);
  EXPECT_EQ(status.layers(1).admissions(), 1u);
  EXPECT_EQ(status.pcie_bytes(), 1000u);
  EXPECT_EQ(status.zero_copy_bytes(), 2000u);
  EXPECT_EQ(status.cpu_bytes(), 3000u);
  EXPECT_EQ(status.cpu_seconds(), 0.5);
  EXPECT_EQ(status.awaited_seconds(), 0.25);
  EXPECT_EQ(status.zero_copy_share(), 0.125);
  EXPECT_EQ(status.parts(0).component(), "expert cache");
  EXPECT_EQ(status.candidates_dropped(), 1u);

  EXPECT_THAT(change("magic"), IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("recency")));
  EXPECT_THAT(change("profile"),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("counts")));
  ASSERT_OK(change("prompt"));
  board.Sync(cache->get(), {});  // the next step
  EXPECT_EQ(show().policy(), "prompt");
}

TEST_F(ServiceTest, BackendWithoutExpertCacheSaysSo) {
  grpc::ClientContext loading;
  v1::ExpertCacheStatus status;
  EXPECT_EQ(stub_->GetExpertCache(&loading, {}, &status).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  model_.info.set_backend("cpu");
  Serve();
  grpc::ClientContext get, set;
  const absl::Status refused = FromGrpc(stub_->GetExpertCache(&get, {}, &status));
  EXPECT_THAT(refused, IsStatus(absl::StatusCode::kFailedPrecondition,
                                HasSubstr("the backend 'cpu' has no expert cache")));
  v1::SetExpertCachePolicyResponse response;
  EXPECT_EQ(stub_->SetExpertCachePolicy(&set, {}, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

class ReadinessTest : public testing::ServedFakeTest {};

TEST_F(ReadinessTest, LoadingWorkerIsAliveAndNotReady) {
  Readiness readiness(&state_);
  EXPECT_TRUE(readiness.IsAlive());
  EXPECT_FALSE(readiness.IsReady());
}

TEST_F(ReadinessTest, ReadyOnlyAfterAProducedTokenAndAskedAgainWhenItIsOld) {
  Serve();
  // No token is ever young enough: each question starts a probe, and hears of the one before.
  Readiness readiness(&state_, {.stuck = 20s, .token_age = -1ms, .probe = 20s});
  EXPECT_FALSE(readiness.IsReady());
  EXPECT_TRUE(Eventually([&] { return readiness.IsReady(); }));
  EXPECT_GT(engine_.n_steps(), 0);
  engine_.Hold();
  ASSERT_TRUE(Eventually([&] {
    readiness.IsReady();
    return scheduler_->status().ms_since_progress > 0;
  }));
  engine_.AwaitHeld();
  engine_.next_error = absl::InternalError("broken");
  engine_.Allow(1);
  EXPECT_TRUE(Eventually([&] { return !readiness.IsReady(); })) << "a failed probe was not noticed";
  EXPECT_FALSE(readiness.IsReady());
  engine_.Release();
  EXPECT_TRUE(Eventually([&] { return readiness.IsReady(); }));
  scheduler_->Stop();
}

TEST_F(ReadinessTest, StuckStepIsNotAliveUntilItMoves) {
  Serve();
  Readiness readiness(&state_, {.stuck = 50ms, .token_age = 10s, .probe = 20s});
  EXPECT_TRUE(readiness.IsAlive());
  engine_.Hold();
  EXPECT_FALSE(readiness.IsReady());  // the probe's step stands
  engine_.AwaitHeld();
  EXPECT_TRUE(Eventually([&] { return !readiness.IsAlive(); }));
  EXPECT_FALSE(readiness.IsReady());
  engine_.Release();
  EXPECT_TRUE(Eventually([&] { return readiness.IsAlive() && readiness.IsReady(); }));
  scheduler_->Stop();
}

TEST_F(ReadinessTest, DrainingWorkerIsAliveAndNotReady) {
  Serve();
  Readiness readiness(&state_);
  readiness.IsReady();
  EXPECT_TRUE(scheduler_->Drain(Clock::now() + 20s));
  EXPECT_TRUE(readiness.IsAlive());
  EXPECT_FALSE(readiness.IsReady());
  scheduler_->Stop();
}

}  // namespace
}  // namespace hearth::worker
