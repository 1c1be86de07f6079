#include "services/gateway/upstream/worker.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/rpc/channel.h"

namespace hearth::gateway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kPollInterval{500};
constexpr milliseconds kStatusTimeout{2000};
constexpr milliseconds kStale{4000};  // a status older than this says nothing about now
constexpr milliseconds kTextTimeout{30'000};
constexpr int64_t kFreshTokenMs = 5000;
constexpr int64_t kFreshProgressMs = 2000;
constexpr milliseconds kProbeTimeout{5000};
constexpr milliseconds kProbeLasts{2000};
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

}  // namespace

Worker::Worker(asio::io_context& io, const std::string& address)
    : io_(io),
      stub_(v1::Inference::NewStub(MakeChannel(address))),
      poll_timer_(io),
      probe_done_(io) {}

void Worker::Start() { asio::co_spawn(io_, Poll(), asio::detached); }

void Worker::Stop() {
  is_stopping_ = true;
  poll_timer_.cancel();
}

asio::awaitable<void> Worker::Poll() {
  while (!is_stopping_) {
    co_await AskOnce();
    if (is_stopping_) break;
    poll_timer_.expires_after(kPollInterval);
    co_await poll_timer_.async_wait(kAwait);
  }
}

asio::awaitable<void> Worker::AskOnce() {
  auto status = co_await Call<v1::WorkerStatus>(
      io_.get_executor(), calls_, v1::GetStatusRequest(), kStatusTimeout,
      [this](auto... arguments) { stub_->async()->GetStatus(arguments...); });
  if (!status.ok()) {
    if (status_) LogWarning("worker does not answer", {{"reason", status.status().ToString()}});
    status_.reset();
    model_is_fresh_ = false;
    co_return;
  }
  if (!status_) LogInfo("worker answers", {{"state", v1::WorkerState_Name(status->state())}});
  status_ = *std::move(status);
  answered_at_ = Clock::now();
  if (model_is_fresh_) co_return;
  auto model = co_await Call<v1::ModelInfo>(
      io_.get_executor(), calls_, v1::GetModelRequest(), kStatusTimeout,
      [this](auto... arguments) { stub_->async()->GetModel(arguments...); });
  if (!model.ok()) co_return;  // too early in its start: asked again
  model_ = *std::move(model);
  model_is_fresh_ = true;
}

absl::Status Worker::Available() const {
  if (!status_ || Clock::now() - answered_at_ > kStale) {
    return absl::UnavailableError("the worker does not answer");
  }
  if (status_->state() == v1::WORKER_STATE_READY) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the worker is not ready: ", status_->message()));
}

bool Worker::ShowsWork() const {
  const int64_t token = status_->ms_since_last_token();
  const int64_t progress = status_->ms_since_engine_progress();
  return (token >= 0 && token < kFreshTokenMs) ||
         (status_->n_running() > 0 && progress >= 0 && progress < kFreshProgressMs);
}

asio::awaitable<absl::Status> Worker::Ready() {
  const absl::Status available = Available();
  if (!available.ok()) co_return available;
  if (ShowsWork()) co_return absl::OkStatus();
  if (is_probing_) {
    co_await probe_done_.async_wait(kAwait);
    co_return probe_result_;
  }
  if (Clock::now() - probed_at_ < kProbeLasts) co_return probe_result_;
  is_probing_ = true;
  probe_done_.expires_at(Clock::time_point::max());
  probe_result_ = co_await ProbeToken();
  probed_at_ = Clock::now();
  is_probing_ = false;
  probe_done_.cancel();
  co_return probe_result_;
}

asio::awaitable<absl::Status> Worker::ProbeToken() {
  v1::GenerateRequest request;
  request.set_request_id("readiness-probe");
  request.mutable_tokens()->add_ids(0);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(1);
  request.set_ignore_eos(true);
  asio::steady_timer changed(io_, Clock::time_point::max());
  const auto stream = Generate(request, kProbeTimeout, [&changed] { changed.cancel(); });
  bool has_token = false;
  while (true) {
    while (const auto event = stream->Next()) {
      has_token |= event->has_finish() && event->finish().completion_tokens() > 0;
    }
    if (const auto status = stream->Ended()) {
      // A full queue is a working engine with much to do.
      if (absl::IsResourceExhausted(*status)) co_return absl::OkStatus();
      if (!status->ok()) co_return *status;
      co_return has_token ? absl::OkStatus()
                          : absl::UnavailableError("the worker answers without tokens");
    }
    co_await changed.async_wait(kAwait);
  }
}

std::unique_ptr<GenerateStream> Worker::Generate(const v1::GenerateRequest& request,
                                                 milliseconds timeout,
                                                 std::function<void()> on_change) {
  return std::make_unique<GenerateStream>(*stub_, request, timeout, io_.get_executor(), calls_,
                                          std::move(on_change));
}

asio::awaitable<absl::StatusOr<v1::TokenizeResponse>> Worker::Tokenize(
    const v1::TokenizeRequest& request) {
  co_return co_await Call<v1::TokenizeResponse>(
      io_.get_executor(), calls_, request, kTextTimeout,
      [this](auto... arguments) { stub_->async()->Tokenize(arguments...); });
}

asio::awaitable<absl::StatusOr<v1::DetokenizeResponse>> Worker::Detokenize(
    const v1::DetokenizeRequest& request) {
  co_return co_await Call<v1::DetokenizeResponse>(
      io_.get_executor(), calls_, request, kTextTimeout,
      [this](auto... arguments) { stub_->async()->Detokenize(arguments...); });
}

asio::awaitable<absl::StatusOr<v1::ApplyTemplateResponse>> Worker::ApplyTemplate(
    const v1::ApplyTemplateRequest& request) {
  co_return co_await Call<v1::ApplyTemplateResponse>(
      io_.get_executor(), calls_, request, kTextTimeout,
      [this](auto... arguments) { stub_->async()->ApplyTemplate(arguments...); });
}

}  // namespace hearth::gateway
