#include "services/gpu-worker/rpc/inference_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "services/gpu-worker/rpc/chat_prompt.h"
#include "services/gpu-worker/rpc/expert_cache_calls.h"
#include "services/gpu-worker/rpc/generate_reactor.h"
#include "services/gpu-worker/rpc/request.h"

namespace hearth::worker {
namespace {

constexpr int kTextThreads = 2;
constexpr size_t kTextQueue = 256;

absl::Status TooMuchText() {
  return absl::ResourceExhaustedError(absl::StrCat(
      "too many requests wait for tokenization, the limit is ", kTextQueue, "; try again later"));
}

Clock::time_point DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return Clock::time_point::max();
  // Years ahead means none; the sum must not overflow.
  const auto left = std::min<std::chrono::system_clock::duration>(
      deadline - std::chrono::system_clock::now(), std::chrono::hours(24 * 365));
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(left);
}

absl::Status StartGeneration(const v1::GenerateRequest& request, const ServedModel& model,
                             Clock::time_point deadline, GenerateReactor& reactor) {
  if (reactor.stream()->is_cancelled()) return absl::CancelledError("the client is gone");
  auto generation = ToGenerationRequest(request, model);
  if (!generation.ok()) {
    if (model.observer != nullptr) model.observer->OnRefused(generation.status().code());
    return generation.status();
  }
  generation->deadline = deadline;
  reactor.SetTokenizer(model.tokenizer);
  return model.scheduler->Submit(*std::move(generation), reactor.stream());
}

}  // namespace

InferenceService::InferenceService(const ServingState* state)
    : state_(state), text_work_(kTextThreads, kTextQueue) {}

grpc::ServerWriteReactor<v1::GenerateEvent>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  auto reactor = GenerateReactor::Make();
  if (const absl::Status serving = state_->CheckServing(); !serving.ok()) {
    reactor->Refuse(serving);
    return reactor.get();
  }
  // The request may be freed when the call ends early: the work has its own copy.
  const bool accepted = text_work_.TryAdd(
      [reactor, model = state_->model(), copy = *request, deadline = DeadlineOf(*context)] {
        const absl::Status started = StartGeneration(copy, *model, deadline, *reactor);
        if (!started.ok()) reactor->Refuse(started);
      });
  if (!accepted) reactor->Refuse(TooMuchText());
  return reactor.get();
}

grpc::ServerUnaryReactor* InferenceService::RunTextWork(
    grpc::CallbackServerContext* context, std::function<absl::Status(const ServedModel&)> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const ServedModel* model = state_->model();
  if (model == nullptr) {
    absl::Status loading = state_->CheckServing();
    if (loading.ok()) loading = absl::UnavailableError("the worker is still loading");
    reactor->Finish(ToGrpc(loading));
    return reactor;
  }
  // Request and response live until Finish.
  const bool accepted = text_work_.TryAdd(
      [reactor, model, run = std::move(work)] { reactor->Finish(ToGrpc(run(*model))); });
  if (!accepted) reactor->Finish(ToGrpc(TooMuchText()));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  return RunTextWork(context, [request, response](const ServedModel& model) {
    EncodeOptions options;
    if (request->has_parse_special()) options.parse_special = request->parse_special();
    auto ids = model.tokenizer->Encode(request->text(), options);
    if (!ids.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("content: ", ids.status().message()));
    }
    response->mutable_ids()->Add(ids->begin(), ids->end());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  return RunTextWork(context, [request, response](const ServedModel& model) {
    const auto& ids = request->ids();
    auto text = model.tokenizer->Decode({ids.data(), static_cast<size_t>(ids.size())},
                                        request->skip_special());
    if (!text.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("tokens: ", text.status().message()));
    }
    response->set_text(*std::move(text));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::ApplyTemplate(grpc::CallbackServerContext* context,
                                                          const v1::ApplyTemplateRequest* request,
                                                          v1::ApplyTemplateResponse* response) {
  return RunTextWork(context, [request, response](const ServedModel& model) -> absl::Status {
    HEARTH_ASSIGN_OR_RETURN(std::string text, RenderChat(model.chat_template, request->chat()));
    response->set_text(std::move(text));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest* /*request*/,
                                                     v1::ModelInfo* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const ServedModel* model = state_->model();
  if (model != nullptr) *response = model->info;
  reactor->Finish(model != nullptr ? grpc::Status::OK
                                   : ToGrpc(absl::UnavailableError("the worker is still loading")));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetStatus(grpc::CallbackServerContext* context,
                                                      const v1::GetStatusRequest* /*request*/,
                                                      v1::WorkerStatus* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  *response = state_->Status();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetExpertCache(
    grpc::CallbackServerContext* context, const v1::GetExpertCacheRequest* /*request*/,
    v1::ExpertCacheStatus* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto tier = FindExpertTier(*state_);
  if (tier.ok()) *response = ToProto((*tier)->Statistics());
  reactor->Finish(ToGrpc(tier.status()));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::SetExpertCachePolicy(
    grpc::CallbackServerContext* context, const v1::SetExpertCachePolicyRequest* request,
    v1::SetExpertCachePolicyResponse* /*response*/) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto tier = FindExpertTier(*state_);
  reactor->Finish(ToGrpc(tier.ok() ? ChangePolicy(**tier, request->policy()) : tier.status()));
  return reactor;
}

}  // namespace hearth::worker
