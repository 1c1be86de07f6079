// Python's operators on values, and walking them.
#pragma once

#include <optional>
#include <string_view>

#include "common/text/jinja/runtime.h"
#include "common/text/jinja/value.h"

namespace hearth::jinja {

// The error of using an undefined value; OK for any other.
absl::Status CheckDefined(const Value& value);

Result Unary(Runtime& runtime, std::string_view op, const Value& operand);
Result Binary(Runtime& runtime, std::string_view op, const Value& left, const Value& right);
absl::StatusOr<bool> Compare(Runtime& runtime, std::string_view op, const Value& left,
                             const Value& right);
absl::StatusOr<bool> Less(Runtime& runtime, const Value& left, const Value& right,
                          std::string_view op = "<");
absl::StatusOr<bool> Contains(Runtime& runtime, const Value& container, const Value& item);

absl::StatusOr<int64_t> Length(const Value& value);
// The values that a for loop walks: keys of a dict, characters of a string. Uses an iterator up.
absl::StatusOr<ItemsPtr> Walk(Runtime& runtime, const Value& value);
// value[start:stop:step]; absent parts are none.
Result Slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop,
             const Value& step);

// A stable sort by the keys (less is Python's <).
absl::StatusOr<Items> SortBy(Runtime& runtime, Items items, Items keys, bool reverse);

// "%s %d" % arguments. `arguments` is a tuple, a dict or one value.
Result FormatPercent(Runtime& runtime, const std::string& format, const Value& arguments);

}  // namespace hearth::jinja
