#include "services/gateway/http/route.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "common/base/status.h"

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

// "a%2Fb" -> "a/b", as clients write a model's name into a path.
std::optional<std::string> PercentDecoded(std::string_view text) {
  std::string decoded;
  while (!text.empty()) {
    if (text.front() != '%') {
      decoded.push_back(text.front());
      text.remove_prefix(1);
      continue;
    }
    const bool is_hex =
        text.size() >= 3 && absl::ascii_isxdigit(text[1]) && absl::ascii_isxdigit(text[2]);
    if (!is_hex) return std::nullopt;
    decoded += absl::HexStringToBytes(ToAbsl(text.substr(1, 2)));
    text.remove_prefix(3);
  }
  return decoded;
}

}  // namespace

std::optional<Route> FindRoute(std::string_view target, std::string* model) {
  const std::string_view path = target.substr(0, target.find('?'));
  for (const Route& route : kRoutes) {
    if (route.pattern == path) return route;
  }
  if (!path.starts_with(kModelPrefix) || path.size() == kModelPrefix.size()) return std::nullopt;
  auto decoded = PercentDecoded(path.substr(kModelPrefix.size()));
  if (!decoded) return std::nullopt;
  *model = *std::move(decoded);
  return Route{"/v1/models/{model}", Page::kModel, std::nullopt, true};
}

}  // namespace hearth::gateway
