// The one table of all request fields of the HTTP API: their types, bounds and meaning.
//
// Every request is checked against it before anything else reads it; docs/api.md is checked against
// it by a test. A field that it does not list is refused, so that no misspelt option is ignored.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/json.h"

namespace hearth::gateway {

// Bits, so that a row can serve several endpoints.
enum Endpoint : unsigned {
  kChat = 1,           // POST /v1/chat/completions
  kCompletion = 2,     // POST /v1/completions
  kTokenize = 4,       // POST /tokenize
  kDetokenize = 8,     // POST /detokenize
  kApplyTemplate = 16  // POST /apply-template
};

enum class FieldKind {
  kBool,
  kInteger,      // integer bounds
  kNumber,       // number bounds; NaN can't be written in JSON
  kString,       // bounds: bytes
  kStrings,      // a string or a list of strings; bounds: how many
  kIds,          // a list of token ids; bounds: how many
  kArray,        // bounds: elements
  kObject,       // bounds: members
  kAny,          // checked where it is read
  kUnsupported,  // only null, false, "", [] or {}: what asks for nothing
};

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxStringBytes = size_t{16} << 20;  // of any string: what a body can hold

struct FieldSpec {
  std::string_view name;
  unsigned endpoints = 0;
  FieldKind kind = FieldKind::kAny;
  int64_t min = 0;  // kInteger, and sizes
  int64_t max = 0;
  double min_number = 0;  // kNumber
  double max_number = 0;
  bool above_min = false;  // kNumber: the minimum itself is out
  bool required = false;   // null counts as absent
};

std::span<const FieldSpec> FieldTable();

// Whether any endpoint has a field of this name.
bool IsField(std::string_view name);

constexpr char kUnknownFieldPayload[] = "hearth/unknown-field";

// Object, known fields only, every type and bound, required fields there. InvalidArgument
// "field: what it is, what it must be"; of an unknown field the name is in the payload
// kUnknownFieldPayload.
absl::Status CheckFields(const json::value& body, Endpoint endpoint);

// A field's value; nullptr where it is absent or null. For objects that CheckFields has accepted.
const json::value* FindField(const json::object& body, std::string_view name);

}  // namespace hearth::gateway
