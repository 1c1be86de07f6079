#include "services/gateway/http/pages.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/gateway/api/request.h"

namespace hearth::gateway {
namespace {

constexpr char kIndex[] =
    "Hearth serves a language model here, through the OpenAI API.\n\n"
    "  POST /v1/chat/completions   POST /v1/completions   GET /v1/models\n"
    "  POST /tokenize   POST /detokenize   POST /apply-template\n"
    "  GET /health   GET /ready   GET /metrics\n\n"
    "Any OpenAI client works with the base URL http://HOST:PORT/v1.\n";

json::object ModelObject(const v1::ModelInfo& model) {
  return {{"id", model.id()},
          {"object", "model"},
          {"created", model.created()},
          {"owned_by", "hearth"},
          {"max_model_len", model.context_tokens()},
          {"meta", json::object({{"vocab_size", model.vocab_size()},
                                 {"n_layers", model.n_layers()},
                                 {"n_experts", model.n_experts()},
                                 {"top_k_experts", model.top_k_experts()},
                                 {"quantization", model.quantization()},
                                 {"backend", model.backend()}})}};
}

HttpResponse Json(const json::value& value) { return {.body = SerializeJson(value)}; }

HttpResponse Models(const Services& services) {
  if (!services.worker.model()) {
    return ErrorResponse(absl::UnavailableError("no model is known yet"));
  }
  json::array data;
  data.push_back(ModelObject(*services.worker.model()));
  return Json(json::object({{"object", "list"}, {"data", std::move(data)}}));
}

struct Unreadiness {
  const char* status;
  const char* message;
};

// In the gateway's own words: the worker's may name files.
Unreadiness WhyNotReady(const Services& services) {
  const auto& worker = services.worker.status();
  if (services.is_draining) return {"stopping", "the server is stopping"};
  if (!worker) return {"unavailable", "the worker does not answer: it is starting or restarting"};
  switch (worker->state()) {
    case v1::WORKER_STATE_STARTING:
      return {"loading", "the model is being loaded"};
    case v1::WORKER_STATE_WAITING_FOR_STORE:
      return {"loading", "the model's experts are being loaded"};
    case v1::WORKER_STATE_DRAINING:
      return {"stopping", "the worker is stopping"};
    case v1::WORKER_STATE_READY:
      return {"unresponsive", "the worker answers, but no token comes out"};
    default:
      return {"failed", "the worker has failed; its log has the reason"};
  }
}

// "ready", or what the cluster is at, with the share of the start that is done.
asio::awaitable<HttpResponse> Ready(Services& services) {
  absl::Status ready = absl::UnavailableError("the gateway is stopping");
  if (!services.is_draining) ready = co_await services.worker.Ready();
  if (ready.ok()) co_return Json(json::object({{"status", "ready"}, {"progress", 1.0}}));
  const auto& worker = services.worker.status();
  const Unreadiness why = WhyNotReady(services);
  HttpResponse response =
      Json(json::object({{"status", why.status},
                         {"progress", worker ? worker->loading_fraction() : 0.0},
                         {"message", why.message}}));
  response.status = 503;
  response.headers.emplace_back(http::field::retry_after, "1");
  co_return response;
}

}  // namespace

HttpResponse UnavailableResponse(const Services& services) {
  const auto& worker = services.worker.status();
  const Unreadiness why = WhyNotReady(services);
  const std::string_view status = why.status;
  if (status == "unavailable" || status == "unresponsive") {
    return ErrorResponse(absl::UnavailableError(why.message));
  }
  std::string message = why.message;
  if (status == "loading") {
    absl::StrAppend(&message, ", ", static_cast<int>(worker->loading_fraction() * 100), " % done");
  }
  return ErrorResponse(
      ApiError{503, absl::StrCat(message, "; try again in a moment (GET /ready tells when)"), "",
               "unavailable"});
}

absl::Status CheckModel(const Services& services, const std::string& model) {
  const auto& served = services.worker.model();
  if (model.empty() || !served || served->id() == model) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("model: this one is not served here, '", served->id(), "' is (GET /v1/models)"));
}

asio::awaitable<HttpResponse> ServePage(Services& services, Page page, const std::string& model) {
  switch (page) {
    case Page::kIndex:
      co_return HttpResponse{.content_type = "text/plain; charset=utf-8", .body = kIndex};
    case Page::kHealth:
      co_return Json(json::object({{"status", "ok"}}));
    case Page::kReady:
      co_return co_await Ready(services);
    case Page::kMetrics:
      co_return HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                             .body = services.metrics.Render()};
    case Page::kModels:
      co_return Models(services);
    case Page::kModel: {
      const absl::Status known = CheckModel(services, model);
      if (!known.ok()) co_return ErrorResponse(known);
      if (!services.worker.model()) co_return Models(services);
      co_return Json(ModelObject(*services.worker.model()));
    }
  }
  co_return ErrorResponse(absl::InternalError("a page without an answer"));
}

asio::awaitable<HttpResponse> ServeHelper(Services& services, Endpoint endpoint,
                                          const json::object& body) {
  if (services.is_draining || !services.worker.Available().ok()) {
    co_return UnavailableResponse(services);
  }
  const absl::Status known = CheckModel(services, StringOr(body, "model", ""));
  if (!known.ok()) co_return ErrorResponse(known);
  if (endpoint == kTokenize) {
    const auto request = ParseTokenize(body);
    if (!request.ok()) co_return ErrorResponse(request.status());
    const auto answer = co_await services.worker.Tokenize(*request);
    if (!answer.ok()) co_return ErrorResponse(answer.status());
    json::array tokens;
    tokens.reserve(static_cast<size_t>(answer->ids_size()));
    for (const int32_t id : answer->ids()) tokens.emplace_back(id);
    co_return Json(json::object({{"tokens", std::move(tokens)}}));
  }
  if (endpoint == kDetokenize) {
    const auto request = ParseDetokenize(body);
    if (!request.ok()) co_return ErrorResponse(request.status());
    const auto answer = co_await services.worker.Detokenize(*request);
    if (!answer.ok()) co_return ErrorResponse(answer.status());
    co_return Json(json::object({{"content", answer->text()}}));
  }
  const auto request = ParseApplyTemplate(body);
  if (!request.ok()) co_return ErrorResponse(request.status());
  const auto answer = co_await services.worker.ApplyTemplate(*request);
  if (!answer.ok()) co_return ErrorResponse(answer.status());
  co_return Json(json::object({{"prompt", answer->text()}}));
}

}  // namespace hearth::gateway
