// The gateway's paths.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "services/gateway/api/fields.h"

namespace hearth::gateway {

enum class Page { kIndex, kHealth, kReady, kMetrics, kModels, kModel };

// Either a page (GET) or an endpoint that takes JSON (POST).
struct Route {
  std::string_view pattern;  // as a metric's label
  std::optional<Page> page;
  std::optional<Endpoint> endpoint;
  bool needs_key = true;

  std::string_view allowed_methods() const { return page ? "GET, HEAD" : "POST"; }
};

// Nothing for unknown paths. `target` may have a query, which is not looked at. `model` gets the
// last part of /v1/models/ID, decoded.
std::optional<Route> FindRoute(std::string_view target, std::string* model);

}  // namespace hearth::gateway
