#include "common/checkpoint/json_fields.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth {
namespace {

// Enough of a value to recognise it; files can hold megabytes.
std::string Excerpt(const json::value& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  constexpr size_t kMaxShown = 80;
  std::string text = SerializeJson(value);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

}  // namespace

const json::value* JsonFields::Find(std::string_view field) const {
  const json::value* value = object_.if_contains({field.data(), field.size()});
  return value == nullptr || value->is_null() ? nullptr : value;
}

absl::Status JsonFields::Error(std::string_view field, const json::value& value,
                               std::string_view allowed) const {
  return absl::InvalidArgumentError(absl::StrCat(where_, ": ", ToAbsl(field), " is ",
                                                 Excerpt(value), ", allowed: ", ToAbsl(allowed)));
}

absl::Status JsonFields::Missing(std::string_view field) const {
  return absl::InvalidArgumentError(absl::StrCat(where_, ": ", ToAbsl(field), " is missing"));
}

absl::StatusOr<std::optional<int64_t>> JsonFields::Int(std::string_view field, int64_t min,
                                                       int64_t max) const {
  const json::value* value = Find(field);
  if (value == nullptr) return std::nullopt;
  // A uint64 here is above every int64.
  if (!value->is_int64() || value->get_int64() < min || value->get_int64() > max) {
    return Error(field, *value, absl::StrCat("a whole number from ", min, " to ", max));
  }
  return value->get_int64();
}

absl::StatusOr<int64_t> JsonFields::RequiredInt(std::string_view field, int64_t min,
                                                int64_t max) const {
  HEARTH_ASSIGN_OR_RETURN(const std::optional<int64_t> value, Int(field, min, max));
  if (!value) return Missing(field);
  return *value;
}

absl::StatusOr<std::optional<double>> JsonFields::Number(std::string_view field, double min,
                                                         double max) const {
  const json::value* value = Find(field);
  if (value == nullptr) return std::nullopt;
  double number = std::nan("");
  if (value->is_double()) number = value->get_double();
  if (value->is_int64()) number = static_cast<double>(value->get_int64());
  if (value->is_uint64()) number = static_cast<double>(value->get_uint64());
  if (!(number >= min && number <= max)) {  // also refuses NaN
    return Error(field, *value, absl::StrCat("a number from ", min, " to ", max));
  }
  return number;
}

absl::StatusOr<std::optional<bool>> JsonFields::Bool(std::string_view field) const {
  const json::value* value = Find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_bool()) return Error(field, *value, "true or false");
  return value->get_bool();
}

absl::StatusOr<std::optional<std::string>> JsonFields::String(std::string_view field) const {
  const json::value* value = Find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) return Error(field, *value, "a text");
  return std::string(value->get_string());
}

absl::StatusOr<const json::object*> JsonFields::Object(std::string_view field) const {
  const json::value* value = Find(field);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) return Error(field, *value, "an object");
  return &value->get_object();
}

absl::StatusOr<const json::array*> JsonFields::Array(std::string_view field,
                                                     size_t max_size) const {
  const json::value* value = Find(field);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) return Error(field, *value, "a list");
  if (value->get_array().size() > max_size) {
    return absl::InvalidArgumentError(absl::StrCat(where_, ": ", ToAbsl(field), " has ",
                                                   value->get_array().size(),
                                                   " entries, the limit is ", max_size));
  }
  return &value->get_array();
}

}  // namespace hearth
