// The methods of str.
#include <algorithm>
#include <limits>

#include "common/text/jinja/builtins.h"
#include "common/text/jinja/format.h"
#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

const Value kNone{None{}};

absl::Status WantString(const Value& value) {
  HEARTH_RETURN_IF_ERROR(CheckDefined(value));
  return value.is_string() ? absl::OkStatus() : Fail("must be str, not ", TypeName(value));
}

template <bool kLeft, bool kRight>
Result StripMethod(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("strip", arguments, {{"chars", kNone}}));
  if (bound[0].is_none()) return runtime.Text(Strip(self.text(), kLeft, kRight), self.is_markup());
  HEARTH_RETURN_IF_ERROR(WantString(bound[0]));
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(self.text().size() + bound[0].text().size()));
  return runtime.Text(Strip(self.text(), bound[0].text(), kLeft, kRight), self.is_markup());
}

// Split at white space; what is left after `limit` pieces stays together.
Items SplitSpaces(std::string_view text, int64_t limit, bool from_right) {
  Items parts;
  const std::u32string decoded = DecodeUtf8(text);
  std::u32string_view rest = decoded;
  const auto skip = [&] {
    while (!rest.empty() && IsSpace(from_right ? rest.back() : rest.front())) {
      from_right ? rest.remove_suffix(1) : rest.remove_prefix(1);
    }
  };
  for (skip(); !rest.empty(); skip()) {
    size_t n = rest.size();
    if (limit-- != 0) {
      n = 0;
      while (n < rest.size() && !IsSpace(from_right ? rest[rest.size() - 1 - n] : rest[n])) ++n;
    } else {
      parts.push_back(Value(Strip(EncodeUtf8(rest), from_right, !from_right && false)));
      if (from_right) parts.back() = Value(Strip(EncodeUtf8(rest), false, true));
      break;
    }
    parts.push_back(
        Value(EncodeUtf8(from_right ? rest.substr(rest.size() - n) : rest.substr(0, n))));
    from_right ? rest.remove_suffix(n) : rest.remove_prefix(n);
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

Items SplitAt(std::string_view text, std::string_view separator, int64_t limit, bool from_right) {
  Items parts;
  while (limit-- != 0) {
    const size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(Value(from_right ? text.substr(at + separator.size()) : text.substr(0, at)));
    text = from_right ? text.substr(0, at) : text.substr(at + separator.size());
  }
  parts.push_back(Value(text));
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

template <bool kFromRight>
Result Split(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("split", arguments, {{"sep", kNone}, {"maxsplit", Value(-1)}}));
  HEARTH_ASSIGN_OR_RETURN(int64_t limit, ToInteger(bound[1]));
  limit = limit < 0 ? -1 : limit;
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(self.text().size()));
  if (bound[0].is_none()) return runtime.List(SplitSpaces(self.text(), limit, kFromRight));
  HEARTH_RETURN_IF_ERROR(WantString(bound[0]));
  if (bound[0].text().empty()) return Fail("empty separator");
  return runtime.List(SplitAt(self.text(), bound[0].text(), limit, kFromRight));
}

template <bool kFromRight>
Result Partition(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("partition", arguments, {{"sep"}}));
  HEARTH_RETURN_IF_ERROR(WantString(bound[0]));
  if (bound[0].text().empty()) return Fail("empty separator");
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(self.text().size()));
  const Items parts = SplitAt(self.text(), bound[0].text(), 1, kFromRight);
  if (parts.size() == 2) return runtime.Tuple({parts[0], bound[0], parts[1]});
  return runtime.Tuple(kFromRight ? Items{Value(""), Value(""), self}
                                  : Items{self, Value(""), Value("")});
}

Result SplitLines(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("splitlines", arguments, {{"keepends", Value(false)}}));
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(self.text().size()));
  const std::u32string text = DecodeUtf8(self.text());
  Items lines;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    while (end < text.size() && !IsLineBreak(text[end])) ++end;
    size_t next = std::min(end + 1, text.size());
    if (end + 1 < text.size() && text[end] == '\r' && text[end + 1] == '\n') ++next;
    const size_t kept = IsTrue(bound[0]) ? next : end;
    lines.push_back(
        Value(EncodeUtf8(std::u32string_view(text).substr(begin, kept - begin)), self.is_markup()));
    begin = next;
  }
  return runtime.List(std::move(lines));
}

// The part of the string between optional code point bounds, and where it begins in bytes.
absl::StatusOr<std::pair<std::string_view, size_t>> Window(Runtime& runtime, const Value& self,
                                                           const Value& start, const Value& end) {
  const int64_t size = self.string().n_code_points;
  HEARTH_RETURN_IF_ERROR(runtime.SpendBytes(self.text().size()));
  int64_t bounds[2] = {0, size};
  for (size_t i = 0; i < 2; ++i) {
    const Value& part = i == 0 ? start : end;
    if (part.is_none()) continue;
    HEARTH_ASSIGN_OR_RETURN(const int64_t at, ToInteger(part));
    bounds[i] = std::clamp<int64_t>(at < 0 ? at + size : at, 0, size);
    if (i == 0 && at > size) return std::pair<std::string_view, size_t>{{}, std::string::npos};
  }
  if (bounds[0] > bounds[1]) return std::pair<std::string_view, size_t>{{}, std::string::npos};
  const std::string_view text = self.text();
  const size_t first = ByteOffset(text, bounds[0]), last = ByteOffset(text, bounds[1]);
  return std::pair{text.substr(first, last - first), first};
}

template <bool kEnd>
Result Affix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind(kEnd ? "endswith" : "startswith", arguments,
                                                  {{"prefix"}, {"start", kNone}, {"end", kNone}}));
  HEARTH_ASSIGN_OR_RETURN(const auto window, Window(runtime, self, bound[1], bound[2]));
  HEARTH_RETURN_IF_ERROR(CheckDefined(bound[0]));
  const bool is_tuple = bound[0].is(Value::Kind::kTuple);
  const Items choices = is_tuple ? bound[0].items() : Items{bound[0]};
  for (const Value& choice : choices) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
    if (!choice.is_string()) {
      return Fail(kEnd ? "endswith" : "startswith",
                  " first arg must be str or a tuple of str, not ", TypeName(choice));
    }
    if (window.second == std::string::npos) continue;
    if (kEnd ? window.first.ends_with(choice.text()) : window.first.starts_with(choice.text()))
      return Value(true);
  }
  return Value(false);
}

enum class Search { kFind, kRightFind, kIndex, kRightIndex, kCount };

template <Search kSearch>
Result Find(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("find", arguments, {{"sub"}, {"start", kNone}, {"end", kNone}}));
  HEARTH_RETURN_IF_ERROR(WantString(bound[0]));
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(self.text().size()));
  HEARTH_ASSIGN_OR_RETURN(const auto window, Window(runtime, self, bound[1], bound[2]));
  const auto& [text, offset] = window;
  const std::string& wanted = bound[0].text();
  if (kSearch == Search::kCount) {
    if (offset == std::string::npos) return Value(0);
    if (wanted.empty()) return Value(CountCodePoints(text) + 1);
    int64_t count = 0;
    for (size_t at = text.find(wanted); at != std::string_view::npos;
         at = text.find(wanted, at + wanted.size()))
      ++count;
    return Value(count);
  }
  constexpr bool kRight = kSearch == Search::kRightFind || kSearch == Search::kRightIndex;
  size_t at = std::string_view::npos;
  if (offset != std::string::npos) at = kRight ? text.rfind(wanted) : text.find(wanted);
  if (at != std::string_view::npos)
    return Value(CountCodePoints(std::string_view(self.text()).substr(0, offset + at)));
  if (kSearch == Search::kIndex || kSearch == Search::kRightIndex)
    return Fail("substring not found");
  return Value(-1);
}

Result Replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("replace", arguments, {{"old"}, {"new"}, {"count", Value(-1)}}));
  HEARTH_RETURN_IF_ERROR(WantString(bound[0]));
  HEARTH_RETURN_IF_ERROR(WantString(bound[1]));
  HEARTH_ASSIGN_OR_RETURN(int64_t left, ToInteger(bound[2]));
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(self.text().size()));
  const std::string_view text = self.text();
  const std::string &from = bound[0].text(), &to = bound[1].text();
  TextBuilder out(runtime);
  size_t at = 0;
  while (left != 0 && !out.is_full()) {
    const size_t found = from.empty() ? at : text.find(from, at);
    if (found == std::string_view::npos) break;
    out.Append(text.substr(at, found - at));
    out.Append(to);
    at = found + from.size();
    --left;
    if (!from.empty()) continue;
    const size_t next = at + ByteOffset(text.substr(at), 1);
    if (at >= text.size()) break;
    out.Append(text.substr(at, next - at));
    at = next;
  }
  out.Append(text.substr(std::min(at, text.size())));
  return out.Finish(self.is_markup());
}

template <std::string (*kMap)(std::string_view)>
Result Mapped(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("method", arguments, {}).status());
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(self.text().size()));
  return runtime.Text(kMap(self.text()), self.is_markup());
}

std::string Capitalize(std::string_view text) {
  const size_t first = ByteOffset(text, 1);
  return TitleCase(DecodeUtf8(text.substr(0, first))) + Lower(text.substr(first));
}

bool IsCased(char32_t c) { return IsUpper(c) || IsLower(c) || IsTitle(c); }

// str.title(): a letter after anything without case begins a word.
std::string Title(std::string_view text) {
  std::string out;
  bool inside = false;
  for (const char32_t c : DecodeUtf8(text)) {
    out += inside ? Lower(EncodeUtf8({&c, 1})) : TitleCase({&c, 1});
    inside = IsCased(c);
  }
  return out;
}

std::string SwapCase(std::string_view text) {
  std::string out;
  for (const char32_t c : DecodeUtf8(text)) {
    const std::string letter = EncodeUtf8({&c, 1});
    out += IsUpper(c) ? Lower(letter) : IsLower(c) ? Upper(letter) : letter;
  }
  return out;
}

bool IsAlnum(uint32_t c) { return IsAlpha(c) || IsNumeric(c); }

template <bool (*kHolds)(uint32_t)>
Result All(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("method", arguments, {}).status());
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(self.text().size()));
  const std::u32string text = DecodeUtf8(self.text());
  return Value(!text.empty() && std::all_of(text.begin(), text.end(), kHolds));
}

template <bool kUpper>
Result HasCase(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return FindTest(kUpper ? "upper" : "lower")(runtime, self, arguments);
}

bool IsDigit(uint32_t c) {
  return IsDecimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0x2070 && c <= 0x2089);
}

Result Join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("join", arguments, {{"iterable"}}));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, bound[0]));
  HEARTH_RETURN_IF_ERROR(runtime.Spend(static_cast<int64_t>(items->size())));
  TextBuilder out(runtime);
  for (size_t i = 0; i < items->size() && !out.is_full(); ++i) {
    const Value& item = (*items)[i];
    if (!item.is_string()) {
      return Fail("sequence item ", std::to_string(i), ": expected str instance, ", TypeName(item),
                  " found");
    }
    if (i > 0) out.Append(self.text());
    out.Append(item.text());
  }
  return out.Finish();
}

template <bool kEnd>
Result RemoveAffix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("removeprefix", arguments, {{"prefix"}}));
  HEARTH_RETURN_IF_ERROR(WantString(bound[0]));
  const std::string &text = self.text(), &affix = bound[0].text();
  if (kEnd && text.ends_with(affix))
    return runtime.Text(text.substr(0, text.size() - affix.size()), self.is_markup());
  if (!kEnd && text.starts_with(affix))
    return runtime.Text(text.substr(affix.size()), self.is_markup());
  return self;
}

template <char kAlign>
Result Justify(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("ljust", arguments, {{"width"}, {"fillchar", Value(" ")}}));
  FormatSpec spec;
  HEARTH_ASSIGN_OR_RETURN(spec.width, ToInteger(bound[0]));
  HEARTH_RETURN_IF_ERROR(WantString(bound[1]));
  if (bound[1].string().n_code_points != 1)
    return Fail("The fill character must be exactly one character long");
  spec.fill = kAlign == '=' ? "0" : bound[1].text();
  TextBuilder out(runtime);
  const int64_t size = self.string().n_code_points,
                missing = std::max<int64_t>(0, std::max<int64_t>(spec.width, 0) - size);
  if (kAlign == '^') {  // CPython puts the odd one to the left where the width is odd
    const int64_t left = missing / 2 + (missing & spec.width & 1);
    out.AppendRepeated(spec.fill, left);
    out.Append(self.text());
    out.AppendRepeated(spec.fill, missing - left);
  } else {
    AppendPadded(out, spec, self.text(), kAlign);
  }
  return out.Finish();
}

const std::initializer_list<NamedFunction> kMethods = {
    {"strip", StripMethod<true, true>},
    {"lstrip", StripMethod<true, false>},
    {"rstrip", StripMethod<false, true>},
    {"split", Split<false>},
    {"rsplit", Split<true>},
    {"splitlines", SplitLines},
    {"partition", Partition<false>},
    {"rpartition", Partition<true>},
    {"startswith", Affix<false>},
    {"endswith", Affix<true>},
    {"replace", Replace},
    {"upper", Mapped<Upper>},
    {"lower", Mapped<Lower>},
    {"casefold", Mapped<Lower>},
    {"title", Mapped<Title>},
    {"capitalize", Mapped<Capitalize>},
    {"swapcase", Mapped<SwapCase>},
    {"find", Find<Search::kFind>},
    {"rfind", Find<Search::kRightFind>},
    {"index", Find<Search::kIndex>},
    {"rindex", Find<Search::kRightIndex>},
    {"count", Find<Search::kCount>},
    {"join", Join},
    {"format", FormatBraces},
    {"isdigit", All<IsDigit>},
    {"isdecimal", All<IsDecimal>},
    {"isnumeric", All<IsNumeric>},
    {"isalpha", All<IsAlpha>},
    {"isalnum", All<IsAlnum>},
    {"isspace", All<IsSpace>},
    {"islower", HasCase<false>},
    {"isupper", HasCase<true>},
    {"removeprefix", RemoveAffix<false>},
    {"removesuffix", RemoveAffix<true>},
    {"ljust", Justify<'<'>},
    {"rjust", Justify<'>'>},
    {"center", Justify<'^'>},
    {"zfill", Justify<'='>},
};

}  // namespace

Function FindStringMethod(std::string_view name) {
  for (const NamedFunction& method : kMethods) {
    if (method.name == name) return method.function;
  }
  return nullptr;
}

}  // namespace hearth::jinja
