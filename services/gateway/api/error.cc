#include "services/gateway/api/error.h"

#include "common/base/json.h"
#include "common/base/status.h"
#include "services/gateway/api/fields.h"

namespace hearth::gateway {
namespace {

int HttpStatus(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kFailedPrecondition:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:  // not by the client, who is still there to read this
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

// What a client is told where the reason is ours.
std::string_view PublicMessage(int http_status) {
  switch (http_status) {
    case 501:
      return "the model's server does not know this request; gateway and worker may be of "
             "different "
             "versions";
    case 503:
      return "the model is not available right now: it is starting, restarting or stopping; try "
             "again in a moment (GET /ready tells when)";
    case 504:
      return "the request took longer than the server allows; ask for fewer tokens or try again";
    default:
      return "an error inside the server; its log has the reason under this request's id";
  }
}

std::string_view Code(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kNotFound:
      return "not_found";
    case absl::StatusCode::kOutOfRange:
      return "context_length_exceeded";
    case absl::StatusCode::kUnauthenticated:
      return "invalid_api_key";
    case absl::StatusCode::kResourceExhausted:
      return "rate_limit_exceeded";
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
      return "unavailable";
    case absl::StatusCode::kDeadlineExceeded:
      return "timeout";
    default:
      return "";
  }
}

// "messages[0].content: is empty" -> "messages[0].content"; empty where it is no field's name.
std::string_view FieldOf(std::string_view message) {
  const size_t end = message.find(": ");
  if (end == std::string_view::npos) return {};
  const std::string_view field = message.substr(0, end);
  return IsField(field.substr(0, field.find_first_of(".["))) ? field : std::string_view();
}

}  // namespace

ApiError ToApiError(const absl::Status& status) {
  ApiError error;
  error.http_status = HttpStatus(status.code());
  error.code = Code(status.code());
  if (error.http_status >= 500) {
    error.message = PublicMessage(error.http_status);
    return error;
  }
  error.message = std::string(status.message());
  error.param = FieldOf(error.message);
  if (error.http_status == 404 && error.param == "model") error.code = "model_not_found";
  if (const auto unknown = status.GetPayload(kUnknownFieldPayload)) {
    error.param = std::string(*unknown);
    error.code = "unknown_parameter";
  }
  return error;
}

std::string_view ErrorType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return http_status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string ErrorBody(const ApiError& error) {
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
  };
  const std::string_view type = ErrorType(error.http_status);
  return SerializeJson(
      json::object({{"error", json::object({{"message", error.message},
                                            {"type", json::string_view(type.data(), type.size())},
                                            {"param", text_or_null(error.param)},
                                            {"code", text_or_null(error.code)}})}}));
}

}  // namespace hearth::gateway
