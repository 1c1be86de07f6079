// Boost.JSON without exceptions, with limits, and with errors that say where.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace hearth {

namespace json = boost::json;

// Parses one JSON text (strict RFC 8259, UTF-8 checked). InvalidArgument names the byte offset.
// `max_depth` bounds nesting: JSON nested deeper is refused, never recursed into.
absl::StatusOr<json::value> ParseJson(std::string_view text, int max_depth = 64);

// The text of a value, as short as Boost.JSON writes it.
std::string SerializeJson(const json::value& value);

}  // namespace hearth
