// Chat and completion requests: from the worker's events to the client, streaming or not.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <optional>

#include "services/gateway/api/request.h"
#include "services/gateway/http/exchange.h"
#include "services/gateway/http/services.h"

namespace hearth::gateway {

// Nothing when the answer was streamed or nobody waits for one any more.
asio::awaitable<std::optional<HttpResponse>> ServeGeneration(Services& services, Exchange& exchange,
                                                             const Generation& generation);

}  // namespace hearth::gateway
