// Walks the table of all request fields: each bound is taken and the value beyond it refused, by
// name, and so is everything of a wrong type.
#include "services/gateway/api/fields.h"

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "common/testing/status_matchers.h"
#include "services/gateway/api/error.h"
#include "services/gateway/api/testing.h"

namespace hearth::gateway {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;
using testing::kEndpoints;
using testing::NamedEndpoint;
using testing::ReadRequest;

using Values = std::vector<std::string>;  // JSON texts

constexpr char kTwoTo63[] = "9223372036854775808";

std::string Quoted(size_t n_bytes) { return absl::StrCat("\"", std::string(n_bytes, 'x'), "\""); }

std::string List(int64_t n, const std::string& element) {
  return absl::StrCat("[", absl::StrJoin(std::vector(static_cast<size_t>(n), element), ","), "]");
}

// With members that the field takes where it looks at them.
std::string Object(std::string_view field, int64_t n) {
  if (field == "stream_options") return n == 0 ? "{}" : R"({"include_usage": true})";
  Values members;
  for (int64_t i = 0; i < n; ++i) members.push_back(absl::StrCat("\"", i, "\": ", i % 100));
  return absl::StrCat("{", absl::StrJoin(members, ","), "}");
}

std::string Elements(std::string_view field, int64_t n) {
  if (field == "messages") return List(n, R"({"role": "user", "content": "hi"})");
  return List(n, R"({"type": "function", "function": {"name": "f"}})");
}

// Without those of the field's own type.
Values WrongTypes(FieldKind kind) {
  Values values = {"1e308", "-1e308", kTwoTo63, "1.5"};
  if (kind != FieldKind::kBool) values.push_back("true");
  if (kind != FieldKind::kString && kind != FieldKind::kStrings) values.push_back("\"\"");
  if (kind != FieldKind::kIds && kind != FieldKind::kArray && kind != FieldKind::kStrings) {
    values.push_back("[]");
  }
  if (kind != FieldKind::kObject) values.push_back("{}");
  return values;
}

std::string OneLess(int64_t bound) {
  if (bound == std::numeric_limits<int64_t>::min()) return "-9223372036854775809";
  return absl::StrCat(bound - 1);
}
std::string OneMore(int64_t bound) {
  if (bound == std::numeric_limits<int64_t>::max()) return kTwoTo63;
  return absl::StrCat(bound + 1);
}

std::string Sized(const FieldSpec& spec, int64_t n) {
  switch (spec.kind) {
    case FieldKind::kString:
      return Quoted(static_cast<size_t>(n));
    case FieldKind::kStrings:
      return List(n, "\"x\"");
    case FieldKind::kIds:
      return List(n, "1");
    case FieldKind::kArray:
      return Elements(spec.name, n);
    default:
      return Object(spec.name, n);
  }
}

Values Good(const FieldSpec& spec) {
  switch (spec.kind) {
    case FieldKind::kBool:
      return {"true", "false"};
    case FieldKind::kInteger:
      return {absl::StrCat(spec.min), absl::StrCat(spec.max)};
    case FieldKind::kNumber:
      return {absl::StrCat(spec.above_min ? spec.min_number + 1e-3 : spec.min_number),
              absl::StrCat(spec.max_number)};
    case FieldKind::kAny:
      if (spec.name == "prompt") return {"\"x\"", "[1]", "[\"x\"]", "[[1], [2]]"};
      if (spec.name == "tool_choice") return {"\"auto\"", "\"none\""};
      if (spec.name == "modalities") return {"[\"text\"]"};
      return {R"({"type": "text"})"};
    case FieldKind::kUnsupported:
      return {"null", "false", "\"\"", "[]", "{}"};
    default:
      return {Sized(spec, spec.min), Sized(spec, spec.max)};
  }
}

Values Bad(const FieldSpec& spec) {
  if (spec.kind == FieldKind::kUnsupported)
    return {"1", "1e308", "true", "\"x\"", "[1]", "{\"a\": 1}"};
  Values values = WrongTypes(spec.kind);
  switch (spec.kind) {
    case FieldKind::kBool:
      values.insert(values.end(), {"0", "1", "\"true\""});
      break;
    case FieldKind::kInteger:
      values.insert(values.end(), {OneLess(spec.min), OneMore(spec.max), "\"1\"", "-0.5"});
      break;
    case FieldKind::kNumber:
      std::erase(values, "1.5");
      values.insert(values.end(), {absl::StrCat(spec.min_number - 1), "\"1\"",
                                   absl::StrCat(spec.max_number + 1), "1e999", "-1e999"});
      if (spec.above_min) values.push_back(absl::StrCat(spec.min_number));
      break;
    case FieldKind::kAny:
      if (spec.name == "prompt") std::erase(values, "\"\"");  // the worker's to refuse
      values.insert(values.end(), {"[[]", "[true]", "{\"type\": \"json_object\"}", "[\"a\", 1]"});
      values.erase(std::find(values.begin(), values.end(), "[[]"));
      break;
    default:
      if (spec.min > 0) values.push_back(Sized(spec, spec.min - 1));
      if (spec.name != "stream_options") values.push_back(Sized(spec, spec.max + 1));
      break;
  }
  if (spec.kind == FieldKind::kStrings) values.push_back("[1]");
  if (spec.kind == FieldKind::kIds) {
    for (const char* id : {"-1", "2147483648", kTwoTo63, "1e308", "1.5", "\"1\"", "null", "[]"}) {
      values.push_back(absl::StrCat("[", id, "]"));
    }
  }
  return values;
}

// The least body of the endpoint, with what the field needs beside it, and the field in it.
std::string Body(const NamedEndpoint& endpoint, const FieldSpec& spec, const std::string& value) {
  Values members;
  if (!spec.required) members.emplace_back(endpoint.fields);
  if (spec.name == "stream_options") members.emplace_back("\"stream\": true");
  if (spec.name == "top_logprobs") members.emplace_back("\"logprobs\": true");
  members.push_back(absl::StrCat("\"", ToAbsl(spec.name), "\": ", value));
  return absl::StrCat("{", absl::StrJoin(members, ", "), "}");
}

std::string Short(const std::string& text) { return text.substr(0, 200); }

void ForEachField(const std::function<void(const NamedEndpoint&, const FieldSpec&)>& visit) {
  for (const FieldSpec& spec : FieldTable()) {
    for (const NamedEndpoint& endpoint : kEndpoints) {
      if ((spec.endpoints & endpoint.endpoint) != 0) visit(endpoint, spec);
    }
  }
}

TEST(FieldTable, EveryBoundItselfIsTaken) {
  int n_checks = 0;
  ForEachField([&](const NamedEndpoint& endpoint, const FieldSpec& spec) {
    for (const std::string& value : Good(spec)) {
      const std::string body = Body(endpoint, spec, value);
      EXPECT_OK(ReadRequest(endpoint.endpoint, body)) << endpoint.name << " " << Short(body);
      ++n_checks;
    }
  });
  EXPECT_GT(n_checks, 150);
}

TEST(FieldTable, EverythingBeyondABoundOrOfAWrongTypeIsRefusedByName) {
  int n_checks = 0;
  ForEachField([&](const NamedEndpoint& endpoint, const FieldSpec& spec) {
    for (const std::string& value : Bad(spec)) {
      const std::string body = Body(endpoint, spec, value);
      const absl::Status status = ReadRequest(endpoint.endpoint, body);
      ASSERT_FALSE(status.ok()) << endpoint.name << " " << Short(body);
      const ApiError error = ToApiError(status);
      EXPECT_EQ(error.http_status, 400) << endpoint.name << " " << Short(body);
      EXPECT_EQ(error.param, spec.name) << Short(body) << " " << error.message;
      EXPECT_LT(error.message.size(), 300u);
      ++n_checks;
    }
  });
  EXPECT_GT(n_checks, 600);
}

TEST(FieldTable, NullIsAsGoodAsAbsentButNotWhereTheFieldIsRequired) {
  ForEachField([&](const NamedEndpoint& endpoint, const FieldSpec& spec) {
    const absl::Status status = ReadRequest(endpoint.endpoint, Body(endpoint, spec, "null"));
    if (!spec.required) {
      EXPECT_OK(status) << endpoint.name << " " << spec.name;
      return;
    }
    EXPECT_EQ(ToApiError(status).http_status, 400);
    EXPECT_EQ(ToApiError(status).param, spec.name);
    EXPECT_EQ(ToApiError(ReadRequest(endpoint.endpoint, "{}")).param, spec.name);
  });
}

TEST(FieldTable, NanAndInfinityAreNoJson) {
  ForEachField([&](const NamedEndpoint& endpoint, const FieldSpec& spec) {
    for (const char* value : {"NaN", "nan", "Infinity", "-Infinity", "0x10", "+1", "01", ".5"}) {
      EXPECT_EQ(ToApiError(ReadRequest(endpoint.endpoint, Body(endpoint, spec, value))).http_status,
                400);
    }
  });
}

TEST(FieldTable, UnknownFieldsAreRefusedByName) {
  for (const NamedEndpoint& endpoint : kEndpoints) {
    for (const std::string& name :
         {std::string("temprature"), std::string("Model"), std::string(), std::string(70, 'y')}) {
      const std::string body =
          absl::StrCat("{", ToAbsl(endpoint.fields), ", \"", name, "\": null}");
      const ApiError error = ToApiError(ReadRequest(endpoint.endpoint, body));
      EXPECT_EQ(error.http_status, 400);
      EXPECT_EQ(error.code, "unknown_parameter");
      EXPECT_EQ(error.param, name.size() > 64 ? name.substr(0, 64) + "..." : name);
    }
  }
}

TEST(FieldTable, AFieldOfOneEndpointIsUnknownToTheOthers) {
  EXPECT_EQ(ToApiError(ReadRequest(kCompletion, R"({"prompt": "a", "messages": []})")).param,
            "messages");
  EXPECT_EQ(ToApiError(ReadRequest(kTokenize, R"({"content": "a", "stream": true})")).param,
            "stream");
}

TEST(FieldTable, LongNamesAreCutBetweenCharacters) {
  std::string name;
  while (name.size() < 100) name += "\xF0\x9F\x94\xA5";
  const absl::Status status = ReadRequest(kChat, absl::StrCat("{\"a", name, "\": 1}"));
  // The message is valid UTF-8 again: it can be parsed.
  EXPECT_OK(ParseJson(ErrorBody(ToApiError(status))));
}

TEST(Body, WhatIsNoJsonObjectIsRefused) {
  for (const char* body : {"", "null", "1", "\"x\"", "[]", "{", "{}}", "{\"a\" 1}", "// x\n{}"}) {
    EXPECT_EQ(ToApiError(ReadRequest(kChat, body)).http_status, 400) << body;
  }
}

TEST(Body, DeepNestingIsRefusedWithoutRecursion) {
  for (const char* open : {"[", "{\"a\":"}) {
    std::string deep;
    for (int i = 0; i < 10'000; ++i) deep += open;
    EXPECT_THAT(ReadRequest(kChat, deep),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("invalid JSON")));
    for (const NamedEndpoint& endpoint : kEndpoints) {
      EXPECT_EQ(ToApiError(ReadRequest(endpoint.endpoint, absl::StrCat("{\"model\": ", deep)))
                    .http_status,
                400);
    }
  }
}

TEST(Body, InvalidUtf8IsRefused) {
  for (const char* bad : {"\xff", "\xc3\x28", "\xed\xa0\x80", "\xf8\x88\x80\x80\x80", "\xc0\xaf"}) {
    const std::string body = absl::StrCat("{\"content\": \"a", bad, "\"}");
    EXPECT_EQ(ToApiError(ReadRequest(kTokenize, body)).http_status, 400);
  }
  EXPECT_EQ(ToApiError(ReadRequest(kTokenize, R"({"content": "\ud800"})")).http_status, 400);
  EXPECT_OK(ReadRequest(kTokenize, R"({"content": "\ud83d\udd25"})"));
}

}  // namespace
}  // namespace hearth::gateway
