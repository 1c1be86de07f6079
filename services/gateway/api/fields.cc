#include "services/gateway/api/fields.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::gateway {
namespace {

std::string_view View(json::string_view text) { return {text.data(), text.size()}; }

// For a message: the value itself where it is short, else what it is.
std::string Describe(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "a list";
    case json::kind::object:
      return "an object";
    default:
      return SerializeJson(value);
  }
}

absl::Status Wrong(const FieldSpec& spec, const json::value& value, std::string_view must) {
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(spec.name), ": ", Describe(value),
                                                 " is no valid value, must be ", ToAbsl(must)));
}

absl::Status CheckSize(const FieldSpec& spec, size_t size, std::string_view unit) {
  const auto n = static_cast<int64_t>(size);
  if (n >= spec.min && n <= spec.max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(spec.name), ": has ", n, " ", ToAbsl(unit),
                                                 ", must have ", spec.min, " to ", spec.max));
}

absl::Status CheckInteger(const FieldSpec& spec, const json::value& value) {
  const std::string bounds = absl::StrCat("an integer of ", spec.min, " to ", spec.max);
  if (const int64_t* n = value.if_int64(); n != nullptr && *n >= spec.min && *n <= spec.max) {
    return absl::OkStatus();
  }
  return Wrong(spec, value, bounds);
}

absl::Status CheckNumber(const FieldSpec& spec, const json::value& value) {
  const std::string bounds =
      spec.above_min
          ? absl::StrCat("a number above ", spec.min_number, " and at most ", spec.max_number)
          : absl::StrCat("a number of ", spec.min_number, " to ", spec.max_number);
  if (!value.is_number()) return Wrong(spec, value, bounds);
  const double number = value.to_number<double>();
  const bool low_enough = number <= spec.max_number;
  const bool high_enough = spec.above_min ? number > spec.min_number : number >= spec.min_number;
  return low_enough && high_enough ? absl::OkStatus() : Wrong(spec, value, bounds);
}

absl::Status CheckIds(const FieldSpec& spec, const json::value& value) {
  const json::array* ids = value.if_array();
  if (ids == nullptr) return Wrong(spec, value, "a list of token ids");
  for (const json::value& id : *ids) {
    const int64_t* n = id.if_int64();
    if (n == nullptr || *n < 0 || *n > kMaxInt32) {
      return Wrong(spec, id, "a list of token ids, which are integers from 0 on");
    }
  }
  return CheckSize(spec, ids->size(), "ids");
}

absl::Status CheckStrings(const FieldSpec& spec, const json::value& value) {
  if (value.is_string()) return absl::OkStatus();
  const json::array* strings = value.if_array();
  if (strings == nullptr) return Wrong(spec, value, "a string or a list of strings");
  for (const json::value& string : *strings) {
    if (!string.is_string()) return Wrong(spec, string, "a string or a list of strings");
  }
  return CheckSize(spec, strings->size(), "strings");
}

// What asks for nothing: clients send such defaults.
bool IsNothing(const json::value& value) {
  switch (value.kind()) {
    case json::kind::bool_:
      return !value.get_bool();
    case json::kind::string:
      return value.get_string().empty();
    case json::kind::array:
      return value.get_array().empty();
    case json::kind::object:
      return value.get_object().empty();
    default:
      return value.is_null();
  }
}

absl::Status CheckValue(const FieldSpec& spec, const json::value& value) {
  switch (spec.kind) {
    case FieldKind::kBool:
      return value.is_bool() ? absl::OkStatus() : Wrong(spec, value, "true or false");
    case FieldKind::kInteger:
      return CheckInteger(spec, value);
    case FieldKind::kNumber:
      return CheckNumber(spec, value);
    case FieldKind::kString:
      if (!value.is_string()) return Wrong(spec, value, "a string");
      return CheckSize(spec, value.get_string().size(), "bytes");
    case FieldKind::kStrings:
      return CheckStrings(spec, value);
    case FieldKind::kIds:
      return CheckIds(spec, value);
    case FieldKind::kArray:
      if (!value.is_array()) return Wrong(spec, value, "a list");
      return CheckSize(spec, value.get_array().size(), "elements");
    case FieldKind::kObject:
      if (!value.is_object()) return Wrong(spec, value, "an object");
      return CheckSize(spec, value.get_object().size(), "members");
    case FieldKind::kAny:
      return absl::OkStatus();
    case FieldKind::kUnsupported:
      if (IsNothing(value)) return absl::OkStatus();
      return absl::InvalidArgumentError(
          absl::StrCat(ToAbsl(spec.name), ": is not supported by this server, leave it out"));
  }
  return absl::InternalError("a kind of field without a check");
}

const FieldSpec* FindSpec(std::string_view name, Endpoint endpoint) {
  for (const FieldSpec& spec : FieldTable()) {
    if (spec.name == name && (spec.endpoints & endpoint) != 0) return &spec;
  }
  return nullptr;
}

// A name that a stranger chose, fit for a message: short, and no character cut in two.
std::string Shown(std::string_view name) {
  size_t end = 64;
  if (name.size() <= end) return std::string(name);
  while (end > 0 && (static_cast<unsigned char>(name[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(ToAbsl(name.substr(0, end)), "...");
}

absl::Status UnknownField(std::string_view name) {
  const std::string shown = Shown(name);
  absl::Status status = absl::InvalidArgumentError(
      absl::StrCat("unknown field '", shown, "'; docs/api.md lists the fields of this endpoint"));
  status.SetPayload(kUnknownFieldPayload, absl::Cord(shown));
  return status;
}

}  // namespace

bool IsField(std::string_view name) {
  return std::ranges::any_of(FieldTable(),
                             [&](const FieldSpec& spec) { return spec.name == name; });
}

absl::Status CheckFields(const json::value& body, Endpoint endpoint) {
  const json::object* object = body.if_object();
  if (object == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("the request's body is ", Describe(body), ", must be a JSON object"));
  }
  for (const auto& member : *object) {
    const FieldSpec* spec = FindSpec(View(member.key()), endpoint);
    if (spec == nullptr) {
      return UnknownField(View(member.key()));
    }
    if (member.value().is_null()) continue;  // the same as absent
    HEARTH_RETURN_IF_ERROR(CheckValue(*spec, member.value()));
  }
  for (const FieldSpec& spec : FieldTable()) {
    if (!spec.required || (spec.endpoints & endpoint) == 0) continue;
    if (FindField(*object, spec.name) != nullptr) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(spec.name), ": is missing, this endpoint requires it"));
  }
  return absl::OkStatus();
}

const json::value* FindField(const json::object& body, std::string_view name) {
  const json::value* value = body.if_contains(json::string_view(name.data(), name.size()));
  return value == nullptr || value->is_null() ? nullptr : value;
}

}  // namespace hearth::gateway
