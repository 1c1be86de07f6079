// Reads typed, bounded fields of one JSON object. Used by the configuration and quantization state
// parsers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/json.h"

namespace hearth {

// Each reader says in its error: where, field, value, and what is allowed. A field that is absent
// or null gives nothing (or `fallback`); `Required` readers make that an error. Borrows the object.
class JsonFields {
 public:
  JsonFields(const json::object& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  // The value, or null where the field is absent or JSON's null.
  const json::value* Find(std::string_view field) const;

  absl::StatusOr<std::optional<int64_t>> Int(std::string_view field, int64_t min,
                                             int64_t max) const;
  absl::StatusOr<int64_t> RequiredInt(std::string_view field, int64_t min, int64_t max) const;
  // Finite, and min <= value <= max.
  absl::StatusOr<std::optional<double>> Number(std::string_view field, double min,
                                               double max) const;
  absl::StatusOr<std::optional<bool>> Bool(std::string_view field) const;
  absl::StatusOr<std::optional<std::string>> String(std::string_view field) const;
  // Null where absent; an error where it is no object.
  absl::StatusOr<const json::object*> Object(std::string_view field) const;
  absl::StatusOr<const json::array*> Array(std::string_view field, size_t max_size) const;

  // "WHERE: FIELD is VALUE, allowed: ALLOWED"
  absl::Status Error(std::string_view field, const json::value& value,
                     std::string_view allowed) const;
  absl::Status Missing(std::string_view field) const;
  const std::string& where() const { return where_; }

 private:
  const json::object& object_;
  std::string where_;
};

}  // namespace hearth
