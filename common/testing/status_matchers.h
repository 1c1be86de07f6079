// EXPECT_OK, ASSERT_OK, ASSERT_OK_AND_ASSIGN and IsStatus for absl::Status in tests.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/status_macros.h"

namespace hearth::testing {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& status) {
  return status.status();
}

// EXPECT_THAT(Parse("x"), IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("byte 1")));
MATCHER_P2(IsStatus, code, message_matcher, "") {
  const absl::Status& status = GetStatus(arg);
  *result_listener << status.ToString();
  return status.code() == code &&
         ::testing::Matches(message_matcher)(std::string(status.message()));
}

}  // namespace hearth::testing

#define EXPECT_OK(expr) EXPECT_EQ(::hearth::testing::GetStatus(expr), absl::OkStatus())
#define ASSERT_OK(expr) ASSERT_EQ(::hearth::testing::GetStatus(expr), absl::OkStatus())
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  ASSERT_OK_AND_ASSIGN_(HEARTH_CONCAT_(hearth_test_or_, __LINE__), lhs, expr)
#define ASSERT_OK_AND_ASSIGN_(tmp, lhs, expr)       \
  auto tmp = (expr);                                \
  ASSERT_TRUE(tmp.ok()) << tmp.status().ToString(); \
  lhs = *std::move(tmp)
