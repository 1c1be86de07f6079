#include "services/expert-store/rpc/store_service.h"

#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/logging.h"
#include "common/experts/layout.h"
#include "common/rpc/status.h"
#include "services/expert-store/rpc/watch_loading.h"

namespace hearth::store {
namespace {

std::string RandomInstance() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

v1::LoadingState ToProto(StorePhase phase) {
  switch (phase) {
    case StorePhase::kReserving:
      return v1::LOADING_STATE_RESERVING;
    case StorePhase::kLoading:
      return v1::LOADING_STATE_LOADING;
    case StorePhase::kAdopting:
      return v1::LOADING_STATE_ADOPTING;
    case StorePhase::kReady:
      return v1::LOADING_STATE_READY;
    case StorePhase::kFailed:
      return v1::LOADING_STATE_FAILED;
  }
  return v1::LOADING_STATE_UNSPECIFIED;
}

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

absl::Status CheckAttach(const StoreStatus& status, const v1::AttachRequest& request) {
  // 0: a caller that does not say is taken at its word that it reads the header.
  if (request.layout_version() != 0 && request.layout_version() < kLayoutVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the segment has layout version ",
                                                      kLayoutVersion, ", this worker reads up to ",
                                                      request.layout_version()));
  }
  if (status.phase == StorePhase::kFailed) {
    return absl::FailedPreconditionError(absl::StrCat("loading failed: ", status.message));
  }
  if (!request.expected_fingerprint().empty() && !status.fingerprint.empty() &&
      request.expected_fingerprint() != status.fingerprint) {
    return absl::FailedPreconditionError(absl::StrCat("the store holds the experts of checkpoint ",
                                                      status.fingerprint, ", this worker needs ",
                                                      request.expected_fingerprint()));
  }
  if (status.phase != StorePhase::kReady) {
    return absl::UnavailableError(absl::StrCat("not loaded yet: ", status.message));
  }
  return absl::OkStatus();
}

}  // namespace

v1::LoadingProgress ToProto(const StoreStatus& status) {
  v1::LoadingProgress progress;
  progress.set_state(ToProto(status.phase));
  progress.set_experts_done(status.progress.experts_done);
  progress.set_experts_total(status.progress.experts_total);
  progress.set_bytes_done(status.progress.bytes_done);
  progress.set_bytes_total(status.progress.bytes_total);
  progress.set_seconds(status.seconds);
  progress.set_message(status.message);
  progress.set_adopted(status.is_adopted);
  return progress;
}

StoreService::StoreService(ExpertStore* store) : store_(store), instance_(RandomInstance()) {}

grpc::ServerUnaryReactor* StoreService::Attach(grpc::CallbackServerContext* context,
                                               const v1::AttachRequest* request,
                                               v1::AttachResponse* response) {
  const StoreStatus status = store_->status();
  const absl::Status checked = CheckAttach(status, *request);
  if (!checked.ok()) return Answer(context, checked);
  response->set_segment_path(status.segment_path.string());
  response->set_segment_bytes(status.segment_bytes);
  response->set_fingerprint(status.fingerprint);
  response->set_layout_version(kLayoutVersion);
  response->set_store_instance(instance_);
  ++n_attached_;
  LogInfo("worker attaches", {{"worker_id", request->worker_id().substr(0, 128)}});
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* StoreService::Describe(grpc::CallbackServerContext* context,
                                                 const v1::DescribeRequest*,
                                                 v1::DescribeResponse* response) {
  const StoreStatus status = store_->status();
  *response->mutable_loading() = ToProto(status);
  response->set_segment_path(status.segment_path.string());
  response->set_segment_bytes(status.segment_bytes);
  response->set_fingerprint(status.fingerprint);
  response->set_layout_version(kLayoutVersion);
  response->set_n_layers(static_cast<uint32_t>(status.n_layers));
  response->set_n_experts(static_cast<uint32_t>(status.n_experts));
  response->set_experts_quarantined(status.n_quarantined);
  response->set_experts_verified(status.n_verified);
  response->set_huge_page_bytes(status.huge_page_bytes);
  response->set_store_instance(instance_);
  return Answer(context, absl::OkStatus());
}

grpc::ServerWriteReactor<v1::LoadingProgress>* StoreService::WatchLoading(
    grpc::CallbackServerContext*, const v1::WatchLoadingRequest*) {
  return new LoadingWatch([store = store_] { return ToProto(store->status()); }, &is_stopping_);
}

grpc::ServerUnaryReactor* StoreService::ReportUsage(grpc::CallbackServerContext* context,
                                                    const v1::ReportUsageRequest* request,
                                                    v1::ReportUsageResponse*) {
  std::vector<UseCount> uses;
  uses.reserve(static_cast<size_t>(request->usage_size()));
  for (const v1::ExpertUsage& use : request->usage()) {
    uses.push_back({use.layer(), use.expert(), use.count()});
  }
  const absl::Status status = store_->profile().Add(uses);
  if (status.ok()) ++n_usage_reports_;
  return Answer(context, status);
}

grpc::ServerUnaryReactor* StoreService::GetProfile(grpc::CallbackServerContext* context,
                                                   const v1::GetProfileRequest* request,
                                                   v1::Profile* response) {
  const UsageProfile& profile = store_->profile();
  const std::string fingerprint = profile.fingerprint();
  if (fingerprint.empty()) {
    return Answer(context, absl::UnavailableError("the store has not read its model yet"));
  }
  response->set_fingerprint(fingerprint);
  response->set_tokens(profile.Tokens());
  for (const UseCount& use : profile.Top(request->top_n())) {
    v1::ExpertUsage* usage = response->add_usage();
    usage->set_layer(use.layer);
    usage->set_expert(use.expert);
    usage->set_count(use.count);
  }
  return Answer(context, absl::OkStatus());
}

}  // namespace hearth::store
