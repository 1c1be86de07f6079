// The gpu-worker as the gateway sees it: its state, asked for again and again, and calls to it.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hearth/v1/inference.grpc.pb.h"
#include "services/gateway/upstream/call.h"
#include "services/gateway/upstream/generate_stream.h"

namespace hearth::gateway {

// All methods: on the io_context's one thread, which must outlive it.
class Worker {
 public:
  Worker(asio::io_context& io, const std::string& address);

  // Asks for the worker's status every half second until Stop().
  void Start();
  void Stop();
  CallRegistry& calls() { return calls_; }

  // OK when a request can be sent now; Unavailable says why not.
  absl::Status Available() const;
  // The last status, where the worker answered lately.
  const std::optional<v1::WorkerStatus>& status() const { return status_; }
  // The model's description: the last one had, also while the worker is away.
  const std::optional<v1::ModelInfo>& model() const { return model_; }

  // Whether tokens come out: one came in the last seconds, the engine is at work, or a probe of one
  // token brings one now. Askers share a probe.
  asio::awaitable<absl::Status> Ready();

  std::unique_ptr<GenerateStream> Generate(const v1::GenerateRequest& request,
                                           std::chrono::milliseconds timeout,
                                           std::function<void()> on_change);
  asio::awaitable<absl::StatusOr<v1::TokenizeResponse>> Tokenize(
      const v1::TokenizeRequest& request);
  asio::awaitable<absl::StatusOr<v1::DetokenizeResponse>> Detokenize(
      const v1::DetokenizeRequest& request);
  asio::awaitable<absl::StatusOr<v1::ApplyTemplateResponse>> ApplyTemplate(
      const v1::ApplyTemplateRequest& request);

 private:
  using Clock = std::chrono::steady_clock;

  asio::awaitable<void> Poll();
  asio::awaitable<void> AskOnce();
  asio::awaitable<absl::Status> ProbeToken();
  bool ShowsWork() const;

  asio::io_context& io_;
  CallRegistry calls_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  asio::steady_timer poll_timer_;
  bool is_stopping_ = false;

  std::optional<v1::WorkerStatus> status_;
  Clock::time_point answered_at_{};
  std::optional<v1::ModelInfo> model_;
  bool model_is_fresh_ = false;  // asked for since the worker last came back

  bool is_probing_ = false;
  asio::steady_timer probe_done_;  // cancelled when the running probe has ended
  absl::Status probe_result_;
  Clock::time_point probed_at_{};
};

}  // namespace hearth::gateway
