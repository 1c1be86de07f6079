#include "services/gateway/api/error.h"

#include <gtest/gtest.h>

#include "common/base/json.h"

namespace hearth::gateway {
namespace {

using absl::StatusCode;

TEST(ApiError, EveryStatusHasItsHttpStatusTypeAndCode) {
  const struct {
    StatusCode status;
    int http;
    const char* type;
    const char* code;
  } rows[] = {
      {StatusCode::kInvalidArgument, 400, "invalid_request_error", ""},
      {StatusCode::kOutOfRange, 400, "invalid_request_error", "context_length_exceeded"},
      {StatusCode::kUnauthenticated, 401, "authentication_error", "invalid_api_key"},
      {StatusCode::kPermissionDenied, 403, "permission_error", ""},
      {StatusCode::kNotFound, 404, "not_found_error", "not_found"},
      {StatusCode::kAborted, 409, "invalid_request_error", ""},
      {StatusCode::kFailedPrecondition, 409, "invalid_request_error", ""},
      {StatusCode::kResourceExhausted, 429, "rate_limit_error", "rate_limit_exceeded"},
      {StatusCode::kUnimplemented, 501, "server_error", ""},
      {StatusCode::kUnavailable, 503, "server_error", "unavailable"},
      {StatusCode::kCancelled, 503, "server_error", "unavailable"},
      {StatusCode::kDeadlineExceeded, 504, "server_error", "timeout"},
      {StatusCode::kInternal, 500, "server_error", ""},
      {StatusCode::kUnknown, 500, "server_error", ""},
      {StatusCode::kDataLoss, 500, "server_error", ""},
  };
  for (const auto& row : rows) {
    const ApiError error = ToApiError(absl::Status(row.status, "why"));
    EXPECT_EQ(error.http_status, row.http);
    EXPECT_EQ(ErrorType(error.http_status), row.type) << row.http;
    EXPECT_EQ(error.code, row.code) << row.http;
  }
}

TEST(ApiError, TheBodyIsOpenAisShapeWithNullForWhatIsNotKnown) {
  EXPECT_EQ(ErrorBody(ToApiError(absl::InvalidArgumentError("top_p: 3 is too \"much\""))),
            R"({"error":{"message":"top_p: 3 is too \"much\"","type":"invalid_request_error",)"
            R"("param":"top_p","code":null}})");
  EXPECT_EQ(ErrorBody(ToApiError(absl::UnauthenticatedError("no key"))),
            R"({"error":{"message":"no key","type":"authentication_error","param":null,)"
            R"("code":"invalid_api_key"}})");
}

TEST(ApiError, OnlyNamesOfFieldsBecomeParam) {
  const auto param = [](const char* message) {
    return ToApiError(absl::InvalidArgumentError(message)).param;
  };
  EXPECT_EQ(param("messages[3].content[0].text: is missing"), "messages[3].content[0].text");
  EXPECT_EQ(param("stream_options.include_usage: must be"), "stream_options.include_usage");
  EXPECT_EQ(param("invalid JSON at byte 3: syntax error"), "");
  EXPECT_EQ(param("nothing"), "");
  EXPECT_EQ(param(""), "");
  EXPECT_EQ(param(": x"), "");
}

TEST(ApiError, AnUnknownModelHasOpenAisCode) {
  EXPECT_EQ(ToApiError(absl::NotFoundError("model: not here")).code, "model_not_found");
}

// S9: what is wrong inside the server may name files, addresses and the segment.
TEST(ApiError, ReasonsInsideTheServerAreNotTold) {
  for (const StatusCode code : {StatusCode::kInternal, StatusCode::kUnknown, StatusCode::kDataLoss,
                                StatusCode::kUnavailable, StatusCode::kDeadlineExceeded,
                                StatusCode::kUnimplemented, StatusCode::kCancelled}) {
    const ApiError error =
        ToApiError(absl::Status(code, "connect unix:/run/hearth/worker.sock: 0x7f00deadbeef"));
    EXPECT_EQ(error.message.find("/run/hearth"), std::string::npos);
    EXPECT_EQ(error.message.find("0x7f"), std::string::npos);
    EXPECT_FALSE(error.message.empty());
    EXPECT_EQ(error.param, "");
  }
}

}  // namespace
}  // namespace hearth::gateway
