// What a header alone can be refused for, in the order in which a stranger should learn of it.
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/gateway/http/connection.h"

namespace hearth::gateway {
namespace {

bool IsJson(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  const size_t end = type.find_last_not_of(" \t");
  return end != std::string_view::npos &&
         beast::iequals(beast::string_view(type.data(), end + 1), "application/json");
}

}  // namespace

std::optional<HttpResponse> Connection::Refuse(const HttpHeader& header) {
  if (header.count(http::field::host) > 1) {
    return ErrorResponse(absl::InvalidArgumentError("the request has more than one Host header"));
  }
  request_.method_string(header.method_string());  // method() throws for unknown ones
  const absl::Status origin = services_.guard.CheckOrigins(header);
  if (!origin.ok()) return ErrorResponse(origin);
  route_ = FindRoute(View(header.target()), &model_);
  if (!route_) {
    return ErrorResponse(
        absl::NotFoundError("there is nothing at this path; GET / lists what this server answers"));
  }
  if (header.method() == http::verb::options) return Preflight(header);
  if (auto refused = RefuseMethod(header)) return refused;
  if (route_->needs_key) {
    const absl::Status key = services_.guard.CheckKey(header);
    if (!key.ok()) {
      HttpResponse response = ErrorResponse(key);
      response.headers.emplace_back(http::field::www_authenticate, "Bearer");
      return response;
    }
  }
  return RefuseBody(header);
}

std::optional<HttpResponse> Connection::RefuseMethod(const HttpHeader& header) const {
  const bool is_get = header.method() == http::verb::get || header.method() == http::verb::head;
  const bool is_right = route_->page ? is_get : header.method() == http::verb::post;
  if (is_right) return std::nullopt;
  HttpResponse response = ErrorResponse(
      ApiError{405, absl::StrCat("this path answers ", ToAbsl(route_->allowed_methods()), " only"),
               "", "method_not_allowed"});
  response.headers.emplace_back(http::field::allow, std::string(route_->allowed_methods()));
  return response;
}

std::optional<HttpResponse> Connection::RefuseBody(const HttpHeader& header) const {
  if (header.find(http::field::content_encoding) != header.end()) {
    return ErrorResponse(ApiError{415, "the body is encoded; send it without Content-Encoding"});
  }
  if (route_->endpoint && !IsJson(View(header[http::field::content_type]))) {
    return ErrorResponse(
        ApiError{415, "the body must be JSON: send the header 'Content-Type: application/json'"});
  }
  if (content_length_ <= static_cast<uint64_t>(services_.options.max_body_bytes))
    return std::nullopt;
  return ErrorResponse(
      ApiError{413, absl::StrCat("the request's body has ", content_length_, " bytes, at most ",
                                 services_.options.max_body_bytes)});
}

HttpResponse Connection::Preflight(const HttpHeader& header) const {
  HttpResponse response{.status = 204, .content_type = "", .body = ""};
  response.headers.emplace_back(http::field::allow,
                                absl::StrCat(ToAbsl(route_->allowed_methods()), ", OPTIONS"));
  if (services_.guard.CorsHeaders(header).empty()) return response;
  response.headers.emplace_back(http::field::access_control_allow_methods,
                                std::string(route_->allowed_methods()));
  // The official clients send headers of their own (x-stainless-...); "*" leaves authorization out.
  response.headers.emplace_back(http::field::access_control_allow_headers, "*, authorization");
  response.headers.emplace_back(http::field::access_control_max_age, "600");
  return response;
}

}  // namespace hearth::gateway
