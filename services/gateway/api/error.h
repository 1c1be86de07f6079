// Errors of the HTTP API, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace hearth::gateway {

struct ApiError {
  int http_status = 500;
  std::string message;
  std::string param = {};  // the request's field to blame; empty: null
  std::string code = {};   // for programs ("context_length_exceeded"); empty: null
};

// By the table of docs/api.md. A message "field: reason" names its field. Messages of errors that
// are not the client's (5xx) are replaced: they may name paths and addresses, which no client sees.
ApiError ToApiError(const absl::Status& status);

// "invalid_request_error", "authentication_error", ...: OpenAI's word for a status.
std::string_view ErrorType(int http_status);

// The JSON object.
std::string ErrorBody(const ApiError& error);

}  // namespace hearth::gateway
