// Values as text: Python's str() and repr(), json.dumps, number formats.
#pragma once

#include <string>

#include "common/text/jinja/runtime.h"
#include "common/text/jinja/value.h"

namespace hearth::jinja {

Result Str(Runtime& runtime, const Value& value);  // always a string value
Result Repr(Runtime& runtime, const Value& value);
absl::Status AppendStr(TextBuilder& out, const Value& value);
std::string FloatRepr(double value);
std::string QuotedRepr(std::string_view text);  // Python's choice of quotes
std::string EscapeHtml(std::string_view text);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // one level's
  std::string item_separator = ", ", key_separator = ": ";
};
// json.dumps(value), as Hugging Face's tojson filter calls it: no HTML escaping.
Result DumpJson(Runtime& runtime, const Value& value, const JsonStyle& style);

}  // namespace hearth::jinja
