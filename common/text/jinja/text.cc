#include "common/text/jinja/text.h"

#include <charconv>
#include <cmath>

#include "common/text/jinja/operators.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

// Namespaces may contain themselves; everything else is bounded when it is made.
constexpr int kMaxReprDepth = 200;

absl::Status AppendRepr(TextBuilder& out, const Value& value, int depth);

absl::Status AppendItems(TextBuilder& out, const Items& items, int depth) {
  for (size_t i = 0; i < items.size() && !out.is_full(); ++i) {
    if (i > 0) out.Append(", ");
    HEARTH_RETURN_IF_ERROR(AppendRepr(out, items[i], depth));
  }
  return absl::OkStatus();
}

absl::Status AppendDict(TextBuilder& out, const DictObject& dict, int depth) {
  out.Append("{");
  bool is_first = true;
  for (const auto& [key, value] : dict.entries) {
    if (out.is_full()) break;
    if (!is_first) out.Append(", ");
    is_first = false;
    HEARTH_RETURN_IF_ERROR(AppendRepr(out, key, depth));
    out.Append(": ");
    HEARTH_RETURN_IF_ERROR(AppendRepr(out, value, depth));
  }
  out.Append("}");
  return absl::OkStatus();
}

absl::Status AppendRange(TextBuilder& out, const RangeObject& range) {
  out.Append(Concat("range(", std::to_string(range.start), ", ", std::to_string(range.stop)));
  if (range.step != 1) out.Append(", " + std::to_string(range.step));
  out.Append(")");
  return absl::OkStatus();
}

std::string LoopRepr(const LoopObject& loop) {
  return Concat("<LoopContext ", std::to_string(loop.index0 + 1), "/",
                std::to_string(loop.items->size()), ">");
}

absl::Status AppendRepr(TextBuilder& out, const Value& value, int depth) {
  if (depth > kMaxReprDepth) return Fail("maximum recursion depth exceeded");
  switch (value.kind()) {
    case Kind::kUndefined:
      out.Append("Undefined");
      break;
    case Kind::kString:
      out.Append(value.is_markup() ? Concat("Markup(", QuotedRepr(value.text()), ")")
                                   : QuotedRepr(value.text()));
      break;
    case Kind::kList:
      out.Append("[");
      HEARTH_RETURN_IF_ERROR(AppendItems(out, value.items(), depth + 1));
      out.Append("]");
      break;
    case Kind::kTuple:
      out.Append("(");
      HEARTH_RETURN_IF_ERROR(AppendItems(out, value.items(), depth + 1));
      out.Append(value.items().size() == 1 ? ",)" : ")");
      break;
    case Kind::kDict:
      return AppendDict(out, value.dict(), depth + 1);
    case Kind::kNamespace:
      out.Append("<Namespace ");
      HEARTH_RETURN_IF_ERROR(AppendDict(out, *value.ns().attributes, depth + 1));
      out.Append(">");
      break;
    default:
      return AppendStr(out, value);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AppendStr(TextBuilder& out, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      break;
    case Kind::kNone:
      out.Append("None");
      break;
    case Kind::kBool:
      out.Append(value.integer() != 0 ? "True" : "False");
      break;
    case Kind::kInt:
      out.Append(std::to_string(value.integer()));
      break;
    case Kind::kFloat:
      out.Append(FloatRepr(value.number()));
      break;
    case Kind::kString:
      out.Append(value.text());
      break;
    case Kind::kRange:
      return AppendRange(out, value.range());
    case Kind::kLoop:
      out.Append(LoopRepr(value.loop()));
      break;
    case Kind::kIterator:
      out.Append("<generator object>");
      break;
    case Kind::kCallable:
      out.Append(Concat(value.callable().macro != nullptr ? "<Macro '" : "<function '",
                        value.callable().name, "'>"));
      break;
    default:
      return AppendRepr(out, value, 0);
  }
  return absl::OkStatus();
}

Result Str(Runtime& runtime, const Value& value) {
  if (value.is_string()) return value;
  TextBuilder out(runtime);
  HEARTH_RETURN_IF_ERROR(AppendStr(out, value));
  return out.Finish();
}

Result Repr(Runtime& runtime, const Value& value) {
  TextBuilder out(runtime);
  HEARTH_RETURN_IF_ERROR(AppendRepr(out, value, 0));
  return out.Finish();
}

// The shortest digits that read back as the same number; exponents as Python writes them.
std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string text(buffer, end);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;
  const auto fixed =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed).ptr;
  text.assign(buffer, fixed);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string QuotedRepr(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for (const char32_t c : DecodeUtf8(text)) {
    char hex[16];
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsPrintable(c)) {
      AppendCodePoint(out, c);
    } else {
      const char* form = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(hex, sizeof(hex), form, static_cast<unsigned>(c));
      out += hex;
    }
  }
  out.push_back(quote);
  return out;
}

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

}  // namespace hearth::jinja
