// str.format: fields by position, number or name, with .attribute and [key], !r and !s, and the
// common format specs.
#include <algorithm>

#include "common/text/jinja/builtins.h"
#include "common/text/jinja/format.h"
#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

bool IsAllDigits(std::string_view text) {
  return !text.empty() && text.size() < 10 &&
         text.find_first_not_of("0123456789") == std::string_view::npos;
}

class BraceFormatter {
 public:
  BraceFormatter(Runtime& runtime, const Value& self, const Arguments& arguments)
      : runtime_(runtime), format_(self.text()), arguments_(arguments), out_(runtime) {}

  Result Run() {
    for (size_t at = 0; at < format_.size() && !out_.is_full();) {
      const char c = format_[at];
      if (c != '{' && c != '}') {
        const size_t end = std::min(format_.find_first_of("{}", at), format_.size());
        out_.Append(format_.substr(at, end - at));
        at = end;
      } else if (at + 1 < format_.size() && format_[at + 1] == c) {
        out_.Append(format_.substr(at, 1));
        at += 2;
      } else if (c == '}') {
        return Fail("Single '}' encountered in format string");
      } else {
        const size_t end = format_.find('}', at);
        if (end == std::string_view::npos) return Fail("expected '}' before end of string");
        HEARTH_RETURN_IF_ERROR(Field(format_.substr(at + 1, end - at - 1)));
        at = end + 1;
      }
    }
    return out_.Finish();
  }

 private:
  Result First(std::string_view name) {
    if (name.empty() || IsAllDigits(name)) {
      const size_t index =
          name.empty() ? next_++ : static_cast<size_t>(std::stoi(std::string(name)));
      if (index < arguments_.positional.size()) return arguments_.positional[index];
      return Fail("Replacement index ", std::to_string(index),
                  " out of range for positional args tuple");
    }
    for (const auto& [key, value] : arguments_.named) {
      if (key == name) return value;
    }
    return Fail(QuotedRepr(name));
  }

  // name.attribute[key]: like the template's own expressions, so it reaches no more than they do.
  Result Look(std::string_view path) {
    size_t at = std::min(path.find_first_of(".["), path.size());
    HEARTH_ASSIGN_OR_RETURN(Value value, First(path.substr(0, at)));
    while (at < path.size()) {
      HEARTH_RETURN_IF_ERROR(runtime_.Spend(1));
      if (path[at] == '.') {
        const size_t end = std::min(path.find_first_of(".[", at + 1), path.size());
        HEARTH_ASSIGN_OR_RETURN(value,
                                GetAttribute(runtime_, value, path.substr(at + 1, end - at - 1)));
        at = end;
        continue;
      }
      const size_t end = path.find(']', at);
      if (path[at] != '[' || end == std::string_view::npos)
        return Fail("Missing ']' in format string");
      const std::string_view key = path.substr(at + 1, end - at - 1);
      const Value index = IsAllDigits(key) ? Value(std::stoi(std::string(key))) : Value(key);
      HEARTH_ASSIGN_OR_RETURN(value, GetItem(runtime_, value, index));
      at = end + 1;
    }
    return value;
  }

  absl::Status Field(std::string_view field) {
    if (field.find('{') != std::string_view::npos)
      return Fail("nested fields in a format are not supported");
    const size_t colon = std::min(field.find(':'), field.size());
    std::string_view path = field.substr(0, colon);
    char conversion = '\0';
    if (const size_t bang = path.find('!'); bang != std::string_view::npos) {
      if (path.size() != bang + 2) return Fail("expected ':' after conversion specifier");
      conversion = path[bang + 1];
      if (conversion != 'r' && conversion != 's') return Fail("Unknown conversion specifier");
      path = path.substr(0, bang);
    }
    HEARTH_ASSIGN_OR_RETURN(Value value, Look(path));
    if (conversion != '\0') {
      HEARTH_ASSIGN_OR_RETURN(value,
                              conversion == 'r' ? Repr(runtime_, value) : Str(runtime_, value));
    }
    return Append(value, colon < field.size() ? field.substr(colon + 1) : "");
  }

  absl::StatusOr<FormatSpec> ReadSpec(std::string_view text) {
    FormatSpec spec;
    size_t at = 0;
    const size_t first = ByteOffset(text, 1);
    const auto is_align = [&](size_t i) {
      return i < text.size() && std::string_view("<>^=").find(text[i]) != std::string_view::npos;
    };
    if (!text.empty() && is_align(first)) {
      spec.fill = std::string(text.substr(0, first));
      spec.align = text[first];
      at = first + 1;
    } else if (is_align(0)) {
      spec.align = text[at++];
    }
    const auto skip = [&](char c) {
      return at < text.size() && text[at] == c ? (++at, true) : false;
    };
    for (const char sign : {'+', '-', ' '}) {
      if (skip(sign)) spec.sign = sign;
    }
    spec.alternate = skip('#');
    if (skip('0') && spec.align == '\0') spec.fill = "0", spec.align = '=';
    HEARTH_ASSIGN_OR_RETURN(spec.width, ReadCount(runtime_, text, at));
    spec.comma = skip(',');
    if (skip('.')) {
      HEARTH_ASSIGN_OR_RETURN(spec.precision, ReadCount(runtime_, text, at));
    }
    if (at < text.size()) spec.type = text[at++];
    if (at < text.size()) return Fail("Invalid format specifier");
    return spec;
  }

  absl::Status Append(const Value& value, std::string_view spec_text) {
    if (spec_text.empty()) return AppendStr(out_, value);
    HEARTH_ASSIGN_OR_RETURN(FormatSpec spec, ReadSpec(spec_text));
    if (value.is_number() && !value.is(Value::Kind::kBool)) {
      if (std::string_view("\0dfFeEgGxXob%", 13).find(spec.type) == std::string_view::npos) {
        return Fail("Unknown format code '", std::string(1, spec.type), "' for object of type '",
                    TypeName(value), "'");
      }
      HEARTH_ASSIGN_OR_RETURN(const std::string text, FormatNumber(spec, value));
      AppendPadded(out_, spec, text, '>');
      return absl::OkStatus();
    }
    if (!value.is_string())
      return Fail("unsupported format string passed to ", TypeName(value), ".__format__");
    if (spec.type != '\0' && spec.type != 's') {
      return Fail("Unknown format code '", std::string(1, spec.type), "' for object of type 'str'");
    }
    if (spec.align == '=') return Fail("'=' alignment not allowed in string format specifier");
    std::string text = value.text();
    if (spec.precision >= 0) text.resize(ByteOffset(text, spec.precision));
    AppendPadded(out_, spec, text, '<');
    return absl::OkStatus();
  }

  Runtime& runtime_;
  const std::string_view format_;
  const Arguments& arguments_;
  TextBuilder out_;
  size_t next_ = 0;
};

}  // namespace

Result FormatBraces(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return BraceFormatter(runtime, self, arguments).Run();
}

}  // namespace hearth::jinja
