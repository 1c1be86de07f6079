// Everything that is answered in one piece: health, models, metrics, tokenize and the like.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <string>

#include "services/gateway/http/exchange.h"
#include "services/gateway/http/services.h"

namespace hearth::gateway {

asio::awaitable<HttpResponse> ServePage(Services& services, Page page, const std::string& model);

// /tokenize, /detokenize and /apply-template. `body` has been checked against the field table.
asio::awaitable<HttpResponse> ServeHelper(Services& services, Endpoint endpoint,
                                          const json::object& body);

// 503 for a request that needs the worker: what it is at, and how far.
HttpResponse UnavailableResponse(const Services& services);

// NotFound unless `model` is empty or the one that is served.
absl::Status CheckModel(const Services& services, const std::string& model);

}  // namespace hearth::gateway
