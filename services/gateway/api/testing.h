// Requests of the HTTP API for tests, read as the server reads them.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "services/gateway/api/fields.h"
#include "services/gateway/api/request.h"

namespace hearth::gateway::testing {

struct NamedEndpoint {
  Endpoint endpoint;
  std::string_view name;    // as in docs/api.md
  std::string_view fields;  // the least that it takes: members of an object
};

inline constexpr NamedEndpoint kEndpoints[] = {
    {kChat, "chat", R"("messages": [{"role": "user", "content": "hi"}])"},
    {kCompletion, "completions", R"("prompt": "hi")"},
    {kTokenize, "tokenize", R"("content": "hi")"},
    {kDetokenize, "detokenize", R"("tokens": [1, 2])"},
    {kApplyTemplate, "apply-template", R"("messages": [{"role": "user", "content": "hi"}])"},
};

// Everything that is looked at before the worker is asked.
inline absl::Status ReadRequest(Endpoint endpoint, std::string_view text) {
  HEARTH_ASSIGN_OR_RETURN(const json::value body, ParseJson(text));
  HEARTH_RETURN_IF_ERROR(CheckFields(body, endpoint));
  const json::object& object = body.get_object();
  switch (endpoint) {
    case kChat:
      return ParseChat(object).status();
    case kCompletion:
      return ParseCompletion(object).status();
    case kTokenize:
      return ParseTokenize(object).status();
    case kDetokenize:
      return ParseDetokenize(object).status();
    case kApplyTemplate:
      return ParseApplyTemplate(object).status();
  }
  return absl::InternalError("an endpoint without a parser");
}

}  // namespace hearth::gateway::testing
