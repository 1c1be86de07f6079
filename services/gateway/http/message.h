// Requests and answers of the HTTP server.
#pragma once

#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "services/gateway/api/error.h"

namespace hearth::gateway {

namespace beast = boost::beast;
namespace http = boost::beast::http;

using HttpRequest = http::request<http::string_body>;
using HttpHeader = http::request<http::empty_body>;

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<std::pair<http::field, std::string>> headers = {};
  bool close = false;  // the connection can't be used again
};

inline HttpResponse ErrorResponse(const ApiError& error) {
  HttpResponse response{.status = error.http_status, .body = ErrorBody(error)};
  // Both pass by themselves, soon.
  if (error.http_status == 429 || error.http_status == 503) {
    response.headers.emplace_back(http::field::retry_after, "1");
  }
  return response;
}
inline HttpResponse ErrorResponse(const absl::Status& status) {
  return ErrorResponse(ToApiError(status));
}

inline std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace hearth::gateway
