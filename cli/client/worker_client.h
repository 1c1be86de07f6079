// A client of gpu-worker for `generate` and `chat`: one generation at a time, streamed,
// cancellable.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hearth/v1/inference.grpc.pb.h"

namespace hearth::cli {

class WorkerClient {
 public:
  // `address`: "unix:/path" or "host:port".
  explicit WorkerClient(const std::string& address);

  // Calls `on_text` with each piece as it comes. Cancelled after Cancel().
  absl::StatusOr<v1::Finish> Generate(const v1::GenerateRequest& request,
                                      const std::function<void(std::string_view)>& on_text);
  // Ends the running generation, from any thread. False when none runs.
  bool Cancel();
  // Closes the connection: nothing but Cancel may be called afterwards.
  void Disconnect() { stub_.reset(); }

  // Where nobody answers yet: an error at once, or after waiting so long for it.
  absl::StatusOr<v1::WorkerStatus> Status(std::chrono::milliseconds wait = {});

  absl::StatusOr<v1::ExpertCacheStatus> ExpertCache();
  absl::Status SetExpertCachePolicy(const std::string& policy);

 private:
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::mutex mutex_;
  grpc::ClientContext* running_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace hearth::cli
