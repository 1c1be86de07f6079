// One conversion of "%5.2f" or "{:>8}" kind: shared by the % operator and str.format.
#pragma once

#include <string>

#include "common/text/jinja/runtime.h"
#include "common/text/jinja/value.h"

namespace hearth::jinja {

struct FormatSpec {
  char type = '\0';  // d i f e g s r x o c ...
  std::string fill = " ";
  char align = '\0';  // < > ^ =
  char sign = '-';    // - + or space
  bool alternate = false, comma = false;
  int64_t width = 0;
  int64_t precision = -1;
};

// The number of `digits` at `at`, which moves on; an error when it exceeds the output budget.
absl::StatusOr<int64_t> ReadCount(const Runtime& runtime, std::string_view text, size_t& at);
absl::StatusOr<std::string> FormatNumber(const FormatSpec& spec, const Value& value);
void AppendPadded(TextBuilder& out, const FormatSpec& spec, const std::string& text,
                  char default_align);
// "{} {name} {0.key!r:>8}".format(...)
Result FormatBraces(Runtime& runtime, const Value& self, const Arguments& arguments);

}  // namespace hearth::jinja
