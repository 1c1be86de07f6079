// grpc.health.v1 with an answer that is computed when asked, and the probe that asks over a new
// connection.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "hearth/v1/health.grpc.pb.h"

namespace hearth {

// `is_serving` is called on gRPC's threads for every Check ("" is the process as a whole) and must
// answer at once. Unknown services are NOT_FOUND as the protocol says. Watch sends the state, then
// changes at most every 500 ms.
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  enum class Answer { kServing, kNotServing, kUnknownService };
  explicit HealthService(std::function<Answer(std::string_view service)> answer)
      : answer_(std::move(answer)) {}

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  std::function<Answer(std::string_view)> answer_;
};

// Connects anew (gRPC 1.51 can go deaf to new connections while old ones work), asks, and
// disconnects. OK if SERVING; FailedPrecondition if NOT_SERVING; Unavailable or DeadlineExceeded if
// nothing answers in time.
absl::Status ProbeHealth(const std::string& address, std::string_view service,
                         std::chrono::milliseconds timeout);

}  // namespace hearth
