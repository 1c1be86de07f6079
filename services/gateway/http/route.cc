#include "services/gateway/http/route.h"

namespace hearth::gateway {
namespace {

// Probes and Prometheus have no keys; what these pages tell is no secret.
constexpr Route kRoutes[] = {
    {"/", Page::kIndex, std::nullopt, false},
    {"/health", Page::kHealth, std::nullopt, false},
    {"/ready", Page::kReady, std::nullopt, false},
    {"/metrics", Page::kMetrics, std::nullopt, false},
    {"/v1/models", Page::kModels, std::nullopt, true},
    {"/v1/chat/completions", std::nullopt, kChat, true},
    {"/v1/completions", std::nullopt, kCompletion, true},
    {"/tokenize", std::nullopt, kTokenize, true},
    {"/detokenize", std::nullopt, kDetokenize, true},
    {"/apply-template", std::nullopt, kApplyTemplate, true},
};
constexpr std::string_view kModelPrefix = "/v1/models/";

}  // namespace

std::optional<Route> FindRoute(std::string_view target, std::string* model) {
  const std::string_view path = target.substr(0, target.find('?'));
  for (const Route& route : kRoutes) {
    if (route.pattern == path) return route;
  }
  if (!path.starts_with(kModelPrefix) || path.size() == kModelPrefix.size()) return std::nullopt;
  *model = std::string(path.substr(kModelPrefix.size()));
  return Route{"/v1/models/{model}", Page::kModel, std::nullopt, true};
}

}  // namespace hearth::gateway
