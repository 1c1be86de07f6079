#include "cli/client/worker_client.h"

#include "common/rpc/channel.h"
#include "common/rpc/status.h"

namespace hearth::cli {
namespace {

constexpr std::chrono::seconds kControlTime{5};

}  // namespace

WorkerClient::WorkerClient(const std::string& address)
    : stub_(v1::Inference::NewStub(MakeChannel(address))) {}

absl::StatusOr<v1::Finish> WorkerClient::Generate(
    const v1::GenerateRequest& request, const std::function<void(std::string_view)>& on_text) {
  grpc::ClientContext context;
  {
    const std::lock_guard lock(mutex_);
    running_ = &context;
  }
  const auto stream = stub_->Generate(&context, request);
  v1::GenerateEvent event;
  v1::Finish finish;
  while (stream->Read(&event)) {
    if (event.has_delta()) on_text(event.delta().text());
    if (event.has_finish()) finish = event.finish();
  }
  const grpc::Status status = stream->Finish();
  {
    const std::lock_guard lock(mutex_);
    running_ = nullptr;
  }
  if (!status.ok()) return FromGrpc(status);
  return finish;
}

bool WorkerClient::Cancel() {
  const std::lock_guard lock(mutex_);
  if (running_ == nullptr) return false;
  running_->TryCancel();
  return true;
}

absl::StatusOr<v1::WorkerStatus> WorkerClient::Status(std::chrono::milliseconds wait) {
  constexpr std::chrono::seconds kAnswerTime{1};
  const bool waits = wait.count() > 0;
  grpc::ClientContext context;
  // A connection comes about only while a call waits for it: between calls nobody reads the socket,
  // but a poller of gRPC's every 5 s.
  context.set_wait_for_ready(waits);
  context.set_deadline(std::chrono::system_clock::now() + (waits ? wait : kAnswerTime));
  v1::WorkerStatus answer;
  const grpc::Status status = stub_->GetStatus(&context, {}, &answer);
  if (!status.ok()) return FromGrpc(status);
  return answer;
}

absl::StatusOr<v1::ExpertCacheStatus> WorkerClient::ExpertCache() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kControlTime);
  v1::ExpertCacheStatus answer;
  const grpc::Status status = stub_->GetExpertCache(&context, {}, &answer);
  if (!status.ok()) return FromGrpc(status);
  return answer;
}

absl::Status WorkerClient::SetExpertCachePolicy(const std::string& policy) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kControlTime);
  v1::SetExpertCachePolicyRequest request;
  request.set_policy(policy);
  v1::SetExpertCachePolicyResponse response;
  return FromGrpc(stub_->SetExpertCachePolicy(&context, request, &response));
}

}  // namespace hearth::cli
