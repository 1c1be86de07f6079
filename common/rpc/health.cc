#include "common/rpc/health.h"

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <mutex>
#include <optional>

#include "common/rpc/channel.h"
#include "common/rpc/status.h"

namespace hearth {
namespace {

namespace health = grpc::health::v1;
using Answer = HealthService::Answer;

health::HealthCheckResponse ToResponse(Answer answer) {
  health::HealthCheckResponse response;
  switch (answer) {
    case Answer::kServing:
      response.set_status(health::HealthCheckResponse::SERVING);
      break;
    case Answer::kNotServing:
      response.set_status(health::HealthCheckResponse::NOT_SERVING);
      break;
    case Answer::kUnknownService:
      response.set_status(health::HealthCheckResponse::SERVICE_UNKNOWN);
      break;
  }
  return response;
}

// Sends the state at once, then looks twice a second. gRPC deletes it through OnDone.
class WatchReactor final : public grpc::ServerWriteReactor<health::HealthCheckResponse> {
 public:
  WatchReactor(const std::function<Answer(std::string_view)>& answer, std::string service)
      : answer_(answer), service_(std::move(service)) {
    Look();
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      Sleep();
    } else {
      FinishOnce();
    }
  }
  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    alarm_.Cancel();
  }
  void OnDone() override { delete this; }

 private:
  void Look() {
    const Answer now = answer_(service_);
    if (last_ == now) return Sleep();
    last_ = now;
    response_ = ToResponse(now);
    StartWrite(&response_);
  }

  void Sleep() {
    const std::lock_guard lock(mutex_);
    // An alarm that fires at once when cancelled already: the callback then finishes.
    const auto when =
        std::chrono::system_clock::now() + std::chrono::milliseconds(cancelled_ ? 0 : 500);
    alarm_.Set(when, [this](bool) {
      bool cancelled;
      {
        const std::lock_guard inner(mutex_);
        cancelled = cancelled_;
      }
      if (cancelled) {
        FinishOnce();
      } else {
        Look();
      }
    });
  }

  void FinishOnce() { Finish(grpc::Status::CANCELLED); }

  const std::function<Answer(std::string_view)>& answer_;  // the service's: outlives its calls
  const std::string service_;
  std::optional<Answer> last_;
  health::HealthCheckResponse response_;
  std::mutex mutex_;
  bool cancelled_ = false;  // guarded by mutex_
  grpc::Alarm alarm_;       // guarded by mutex_
};

}  // namespace

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const health::HealthCheckRequest* request,
                                               health::HealthCheckResponse* response) {
  auto* reactor = context->DefaultReactor();
  const Answer answer = answer_(request->service());
  if (answer == Answer::kUnknownService) {
    reactor->Finish({grpc::StatusCode::NOT_FOUND, "unknown service"});
    return reactor;
  }
  *response = ToResponse(answer);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<health::HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext* /*context*/, const health::HealthCheckRequest* request) {
  return new WatchReactor(answer_, request->service());
}

absl::Status ProbeHealth(const std::string& address, std::string_view service,
                         std::chrono::milliseconds timeout) {
  const auto channel = MakeChannel(address, ChannelReuse::kOwnConnection);
  const auto stub = health::Health::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  health::HealthCheckRequest request;
  request.set_service(std::string(service));
  health::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  if (response.status() != health::HealthCheckResponse::SERVING) {
    return absl::FailedPreconditionError("not serving");
  }
  return absl::OkStatus();
}

}  // namespace hearth
