#include "services/gateway/http/generation.h"

#include <boost/asio/as_tuple.hpp>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "services/gateway/api/answer.h"
#include "services/gateway/api/sse.h"
#include "services/gateway/http/pages.h"

namespace hearth::gateway {
namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// All choices of one answer under way at the worker.
class Choices {
 public:
  Choices(Services& services, Exchange& exchange, const Generation& generation, Answer& answer,
          std::function<void()> wake)
      : answer_(answer) {
    for (size_t i = 0; i < generation.requests.size(); ++i) {
      v1::GenerateRequest request = generation.requests[i];
      request.set_request_id(i == 0 ? exchange.id() : absl::StrCat(exchange.id(), ".", i));
      streams_.push_back(services.worker.Generate(request, services.options.request_timeout, wake));
    }
    n_running_ = streams_.size();
  }

  // Passes on what has come. An error: one of the calls failed.
  absl::Status Collect(std::string* out) {
    for (size_t i = 0; i < streams_.size(); ++i) {
      if (streams_[i] == nullptr) continue;
      while (const auto event = streams_[i]->Next()) OnEvent(static_cast<int>(i), *event, out);
      const auto ended = streams_[i]->Ended();
      if (!ended) continue;
      streams_[i].reset();
      --n_running_;
      if (!ended->ok()) return *ended;
    }
    if (is_complete() && n_finished_ != streams_.size()) {
      return absl::InternalError("the worker ended an answer without saying why");
    }
    return absl::OkStatus();
  }

  bool is_complete() const { return n_running_ == 0; }

 private:
  void OnEvent(int choice, const v1::GenerateEvent& event, std::string* out) {
    // Headers go out with the first event: what is refused before has its own HTTP status.
    if (!std::exchange(has_started_, true)) answer_.Start(out);
    if (event.has_started()) answer_.OnStarted(choice, event.started());
    if (event.has_delta()) answer_.OnDelta(choice, event.delta(), out);
    if (!event.has_finish()) return;
    answer_.OnFinish(choice, event.finish(), out);
    ++n_finished_;
  }

  Answer& answer_;
  std::vector<std::unique_ptr<GenerateStream>> streams_;
  size_t n_running_ = 0, n_finished_ = 0;
  bool has_started_ = false;
};

// Counts an open stream for as long as it lives.
class OpenStream {
 public:
  explicit OpenStream(prometheus::Gauge& gauge) : gauge_(gauge) { gauge_.Increment(); }
  ~OpenStream() { gauge_.Decrement(); }

 private:
  prometheus::Gauge& gauge_;
};

std::optional<HttpResponse> Refuse(const Services& services, const Generation& generation) {
  if (services.is_draining || !services.worker.Available().ok()) {
    return UnavailableResponse(services);
  }
  const absl::Status known = CheckModel(services, generation.model);
  if (!known.ok()) return ErrorResponse(known);
  return std::nullopt;
}

// The worker's word for a limit may not be the one that the client used.
absl::Status InClientsWords(const absl::Status& status, const Generation& generation) {
  constexpr std::string_view kWorkers = "max_tokens";
  const std::string message(status.message());
  if (generation.limit_name == kWorkers || !message.starts_with("max_tokens: ")) return status;
  return {status.code(), absl::StrCat(generation.limit_name, message.substr(kWorkers.size()))};
}

void NoteFailure(Services& services, const Exchange& exchange, const absl::Status& status) {
  services.metrics.UpstreamError(status.code());
  if (absl::IsResourceExhausted(status)) services.metrics.Rejected("queue");
  const bool is_ours = ToApiError(status).http_status >= 500;
  Log(is_ours ? LogLevel::kWarning : LogLevel::kDebug, "generation failed",
      {{"request_id", exchange.id()}, {"reason", status.ToString()}});
}

// An error as the answer, or as the stream's last event when that has begun.
asio::awaitable<std::optional<HttpResponse>> Fail(Exchange& exchange, const absl::Status& status) {
  if (!exchange.has_begun()) co_return ErrorResponse(status);
  std::string event;
  AppendEvent(ErrorBody(ToApiError(status)), &event);
  co_await exchange.SendEvents(event);
  co_return std::nullopt;
}

}  // namespace

asio::awaitable<std::optional<HttpResponse>> ServeGeneration(Services& services, Exchange& exchange,
                                                             const Generation& generation) {
  if (auto refused = Refuse(services, generation)) co_return std::move(refused);
  const auto ticket = services.requests.TryEnter(static_cast<int64_t>(generation.requests.size()));
  if (!ticket) {
    services.metrics.Rejected("requests");
    co_return ErrorResponse(
        absl::ResourceExhaustedError(absl::StrCat("the server works on ", services.requests.used(),
                                                  " requests, its limit; try again in a moment")));
  }
  asio::steady_timer changed(co_await asio::this_coro::executor,
                             std::chrono::steady_clock::time_point::max());
  const auto wake = [&changed] { changed.cancel(); };
  const auto answer = Answer::Make(
      generation, {.id = absl::StrCat(generation.is_chat ? "chatcmpl-" : "cmpl-", exchange.id()),
                   .created = UnixSeconds(),
                   .model = services.worker.model() ? services.worker.model()->id() : ""});
  std::optional<OpenStream> open;
  if (generation.stream) open.emplace(services.metrics.streams_open());
  exchange.OnEnd(wake);
  Choices choices(services, exchange, generation, *answer, wake);

  while (true) {
    std::string out;
    const absl::Status status = choices.Collect(&out);
    if (exchange.client_is_gone()) co_return std::nullopt;
    if (status.ok() && choices.is_complete()) answer->End(&out);
    if (!out.empty()) {
      const bool is_sent = co_await exchange.SendEvents(out);
      if (!is_sent) co_return std::nullopt;
    }
    if (!status.ok()) {
      NoteFailure(services, exchange, status);
      co_return co_await Fail(exchange, InClientsWords(status, generation));
    }
    if (choices.is_complete()) break;
    if (exchange.must_end()) {
      co_return co_await Fail(exchange, absl::UnavailableError("the gateway is stopping"));
    }
    if (!out.empty()) continue;  // more may have come while it was sent
    changed.expires_after(services.options.times.quiet);
    const auto [error] = co_await changed.async_wait(kAwait);
    const bool was_quiet = !error;
    if (was_quiet && exchange.has_begun()) co_await exchange.SendEvents(kSseComment);
  }
  if (generation.stream) co_return std::nullopt;
  co_return HttpResponse{.body = answer->Body()};
}

}  // namespace hearth::gateway
