// Filters that make text: tojson, trim, replace, indent ...
#include <algorithm>
#include <cstdio>

#include "common/text/jinja/builtins.h"
#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

// str(self), with the cost of going through it character by character.
absl::StatusOr<Value> TextOf(Runtime& runtime, const Value& self) {
  HEARTH_ASSIGN_OR_RETURN(Value text, Str(runtime, self));
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(text.text().size()));
  return text;
}

Result ToJson(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("tojson", arguments,
                                                  {{"ensure_ascii", Value(false)},
                                                   {"indent", Value(None{})},
                                                   {"separators", Value(None{})},
                                                   {"sort_keys", Value(false)}}));
  JsonStyle style;
  style.ensure_ascii = IsTrue(bound[0]);
  style.sort_keys = IsTrue(bound[3]);
  if (bound[1].is_integer()) {
    constexpr int64_t kMaxIndent = 64;
    if (bound[1].integer() > kMaxIndent)
      return Fail("tojson: indent is at most ", std::to_string(kMaxIndent));
    style.indent = std::string(static_cast<size_t>(std::max<int64_t>(0, bound[1].integer())), ' ');
  } else if (bound[1].is_string()) {
    style.indent = bound[1].text();
  } else if (!bound[1].is_none()) {
    return Fail("can't multiply sequence by non-int of type '", TypeName(bound[1]), "'");
  }
  if (style.indent.has_value()) style.item_separator = ",";
  if (!bound[2].is_none()) {
    if (!bound[2].is_sequence() || bound[2].items().size() != 2 ||
        !bound[2].items()[0].is_string() || !bound[2].items()[1].is_string()) {
      return Fail("tojson: separators must be two strings");
    }
    style.item_separator = bound[2].items()[0].text();
    style.key_separator = bound[2].items()[1].text();
  }
  return DumpJson(runtime, self, style);
}

Result Trim(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("trim", arguments, {{"chars", Value(None{})}}));
  HEARTH_ASSIGN_OR_RETURN(const Value text, Str(runtime, self));
  if (bound[0].is_none()) return runtime.Text(Strip(text.text(), true, true), text.is_markup());
  if (!bound[0].is_string()) return Fail("strip arg must be None or str");
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(text.text().size() + bound[0].text().size()));
  return runtime.Text(Strip(text.text(), bound[0].text(), true, true), text.is_markup());
}

template <std::string (*kMap)(std::string_view)>
Result Mapped(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("filter", arguments, {}).status());
  HEARTH_ASSIGN_OR_RETURN(const Value text, TextOf(runtime, self));
  return runtime.Text(kMap(text.text()), text.is_markup());
}

std::string Capitalize(std::string_view text) {
  const size_t first = ByteOffset(text, 1);
  return TitleCase(DecodeUtf8(text.substr(0, first))) + Lower(text.substr(first));
}

// Jinja's words begin after white space, a dash or an opening bracket.
std::string Title(std::string_view text) {
  std::string out;
  std::u32string word;
  const auto flush = [&] {
    if (word.empty()) return;
    out += Upper(EncodeUtf8({word.data(), 1})) +
           Lower(EncodeUtf8(std::u32string_view(word).substr(1)));
    word.clear();
  };
  for (const char32_t c : DecodeUtf8(text)) {
    if (IsSpace(c) || (c < 0x80 && std::string_view("-({[<").find(static_cast<char>(c)) !=
                                       std::string_view::npos)) {
      flush();
      AppendCodePoint(out, c);
    } else {
      word.push_back(c);
    }
  }
  flush();
  return out;
}

Result Escape(Runtime& runtime, const Value& self, const Arguments&) {
  if (self.is_markup()) return self;
  HEARTH_ASSIGN_OR_RETURN(const Value text, TextOf(runtime, self));
  return runtime.Text(EscapeHtml(text.text()), true);
}

Result Safe(Runtime& runtime, const Value& self, const Arguments&) {
  HEARTH_ASSIGN_OR_RETURN(const Value text, Str(runtime, self));
  return runtime.Text(text.text(), true);
}

Result String(Runtime& runtime, const Value& self, const Arguments&) { return Str(runtime, self); }

Result Replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(Items bound,
                          Bind("replace", arguments, {{"old"}, {"new"}, {"count", Value(None{})}}));
  HEARTH_ASSIGN_OR_RETURN(const Value text, Str(runtime, self));
  Arguments call;
  for (size_t i = 0; i < 2; ++i) {
    HEARTH_ASSIGN_OR_RETURN(bound[i], Str(runtime, bound[i]));
    call.positional.push_back(bound[i]);
  }
  call.positional.push_back(bound[2].is_none() ? Value(-1) : bound[2]);
  return FindStringMethod("replace")(runtime, text, call);
}

Result Indent(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(
      const Items bound,
      Bind("indent", arguments,
           {{"width", Value(4)}, {"first", Value(false)}, {"blank", Value(false)}}));
  HEARTH_RETURN_IF_ERROR(CheckDefined(self));
  if (!self.is_string())
    return Fail("unsupported operand type(s) for +=: '", TypeName(self), "' and 'str'");
  TextBuilder indention(runtime);
  if (bound[0].is_string()) {
    indention.Append(bound[0].text());
  } else {
    HEARTH_ASSIGN_OR_RETURN(const int64_t width, ToInteger(bound[0]));
    indention.AppendRepeated(" ", width);
  }
  HEARTH_ASSIGN_OR_RETURN(const std::string prefix, indention.Take());
  HEARTH_ASSIGN_OR_RETURN(const Value lines,
                          FindStringMethod("splitlines")(runtime, Value(self.text() + "\n"), {}));
  TextBuilder out(runtime);
  bool is_first = true;
  for (const Value& line : lines.items()) {
    if (out.is_full()) break;
    if (!is_first) out.Append("\n");
    if (is_first ? IsTrue(bound[1]) : IsTrue(bound[2]) || !line.text().empty()) out.Append(prefix);
    out.Append(line.text());
    is_first = false;
  }
  return out.Finish(self.is_markup());
}

Result WordCount(Runtime& runtime, const Value& self, const Arguments&) {
  HEARTH_ASSIGN_OR_RETURN(const Value text, TextOf(runtime, self));
  int64_t words = 0;
  bool inside = false;
  for (const char32_t c : DecodeUtf8(text.text())) {
    const bool is_word = IsAlpha(c) || IsNumeric(c) || c == '_';
    words += is_word && !inside;
    inside = is_word;
  }
  return Value(words);
}

void AppendQuoted(TextBuilder& out, std::string_view text, bool is_query) {
  static constexpr std::string_view kSafe = "_.-~";
  for (const char c : text) {
    const bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                          (c >= 'A' && c <= 'Z') || kSafe.find(c) != std::string_view::npos ||
                          (c == '/' && !is_query);
    char hex[4];
    std::snprintf(hex, sizeof(hex), "%%%02X", static_cast<unsigned>(static_cast<unsigned char>(c)));
    out.Append(is_plain               ? std::string_view(&c, 1)
               : is_query && c == ' ' ? "+"
                                      : std::string_view(hex));
  }
}

Result UrlEncode(Runtime& runtime, const Value& self, const Arguments&) {
  TextBuilder out(runtime);
  if (self.is_string() || !(self.is_dict() || self.is_sequence() || self.is(Value::Kind::kRange))) {
    HEARTH_ASSIGN_OR_RETURN(const Value text, TextOf(runtime, self));
    AppendQuoted(out, text.text(), false);
    return out.Finish();
  }
  Items pairs;
  if (self.is_dict()) {
    for (const auto& [key, value] : self.dict().entries)
      pairs.push_back(Value::Tuple({key, value}));
  } else {
    HEARTH_ASSIGN_OR_RETURN(const ItemsPtr walked, Walk(runtime, self));
    pairs = *walked;
  }
  HEARTH_RETURN_IF_ERROR(runtime.Spend(static_cast<int64_t>(pairs.size())));
  for (size_t i = 0; i < pairs.size(); ++i) {
    HEARTH_ASSIGN_OR_RETURN(const ItemsPtr parts, Walk(runtime, pairs[i]));
    if (parts->size() != 2) return Fail("urlencode needs pairs of key and value");
    HEARTH_ASSIGN_OR_RETURN(const Value key, TextOf(runtime, (*parts)[0]));
    HEARTH_ASSIGN_OR_RETURN(const Value value, TextOf(runtime, (*parts)[1]));
    if (i > 0) out.Append("&");
    AppendQuoted(out, key.text(), true);
    out.Append("=");
    AppendQuoted(out, value.text(), true);
  }
  return out.Finish();
}

Result Format(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!arguments.positional.empty() && !arguments.named.empty()) {
    return Fail("can't handle positional and keyword arguments at the same time");
  }
  HEARTH_ASSIGN_OR_RETURN(const Value text, Str(runtime, self));
  if (arguments.named.empty())
    return FormatPercent(runtime, text.text(), Value::Tuple(arguments.positional));
  auto dict = std::make_shared<DictObject>();
  for (const auto& [name, value] : arguments.named) dict->Set(name, value);
  return FormatPercent(runtime, text.text(),
                       Value(std::shared_ptr<const DictObject>(std::move(dict))));
}

Result Center(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("center", arguments, {{"width", Value(80)}}));
  HEARTH_ASSIGN_OR_RETURN(const Value text, Str(runtime, self));
  return FindStringMethod("center")(runtime, text, {{bound[0]}, {}});
}

}  // namespace

const std::initializer_list<NamedFunction> kTextFilters = {
    {"tojson", ToJson},
    {"trim", Trim},
    {"upper", Mapped<Upper>},
    {"lower", Mapped<Lower>},
    {"capitalize", Mapped<Capitalize>},
    {"title", Mapped<Title>},
    {"escape", Escape},
    {"e", Escape},
    {"safe", Safe},
    {"string", String},
    {"replace", Replace},
    {"indent", Indent},
    {"wordcount", WordCount},
    {"urlencode", UrlEncode},
    {"format", Format},
    {"center", Center},
};

}  // namespace hearth::jinja
