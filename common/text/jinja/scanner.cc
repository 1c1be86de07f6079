// Names, numbers, strings and operators inside a tag.
#include <charconv>
#include <cstdlib>

#include "common/text/jinja/lexer.h"
#include "common/text/jinja/runtime.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool IsName(char c) { return IsNameStart(c) || IsDigit(c); }

int DigitValue(char c) {
  if (IsDigit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 99;
}

absl::Status LineError(int line, const std::string& what) {
  return Fail("line ", std::to_string(line), ": ", what);
}

}  // namespace

absl::StatusOr<Token> ExpressionScanner::Next() {
  const char c = source[at];
  if (IsDigit(c)) return Number();
  if (c == '\'' || c == '"') return String();
  Token token{TokenType::kName, "", {}, line};
  if (IsNameStart(c)) {
    while (at < source.size() && IsName(source[at])) token.text.push_back(source[at++]);
    return token;
  }
  token.type = TokenType::kOperator;
  static constexpr std::string_view kOperators[] = {
      "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
      "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
  for (const std::string_view op : kOperators) {
    if (source.substr(at, op.size()) != op) continue;
    at += op.size();
    token.text = op;
    return token;
  }
  const size_t end = ByteOffset(source.substr(at), 1);
  return LineError(line, Concat("unexpected char '", source.substr(at, end), "'"));
}

absl::StatusOr<Token> ExpressionScanner::Number() {
  Token token{TokenType::kInteger, "", {}, line};
  int base = 10;
  const bool is_index = at > 0 && source[at - 1] == '.';  // in x.0.1 no float
  if (source[at] == '0' && at + 1 < source.size()) {
    const char prefix = static_cast<char>(source[at + 1] | 0x20);
    base = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 10;
  }
  if (base != 10) at += 2;
  std::string digits;
  const auto take_digits = [&] {
    while (at < source.size() &&
           (DigitValue(source[at]) < base || (source[at] == '_' && !digits.empty()))) {
      if (source[at] != '_') digits.push_back(source[at]);
      ++at;
    }
  };
  const auto peek = [&](size_t ahead) {
    return at + ahead < source.size() ? source[at + ahead] : '\0';
  };
  take_digits();
  if (digits.empty()) return LineError(line, "malformed number");
  if (base == 10 && !is_index && peek(0) == '.' && IsDigit(peek(1))) {
    token.type = TokenType::kFloat;
    digits.push_back(source[at++]);
    take_digits();
  }
  const bool has_sign = peek(1) == '+' || peek(1) == '-';
  if (base == 10 && !is_index && (peek(0) | 0x20) == 'e' && IsDigit(peek(has_sign ? 2 : 1))) {
    token.type = TokenType::kFloat;
    digits.append(source.substr(at, has_sign ? 2 : 1));
    at += has_sign ? 2 : 1;
    take_digits();
  }
  token.text = digits;
  if (token.type == TokenType::kFloat) {
    token.number = Value(std::strtod(digits.c_str(), nullptr));
    return token;
  }
  if (base == 10 && digits.size() > 1 && digits[0] == '0' &&
      digits.find_first_not_of('0') != std::string::npos) {
    return LineError(
        line, Concat("malformed number ", digits, ": a decimal number must not begin with 0"));
  }
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc())
    return LineError(line, Concat("the number ", digits, " does not fit in 64 bits"));
  token.number = Value(value);
  return token;
}

absl::StatusOr<Token> ExpressionScanner::String() {
  Token token{TokenType::kString, "", {}, line};
  const char quote = source[at++];
  while (at < source.size() && source[at] != quote) {
    if (source[at] == '\\' && at + 1 < source.size()) {
      ++at;
      HEARTH_RETURN_IF_ERROR(Escape(token.text));
      continue;
    }
    line += source[at] == '\n';
    token.text.push_back(source[at++]);
  }
  if (at >= source.size()) return LineError(token.line, "this string has no end");
  ++at;
  return token;
}

// Python's escapes; `at` is behind the backslash. An unknown one stays as it is written.
absl::Status ExpressionScanner::Escape(std::string& out) {
  const char c = source[at++];
  static constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
  if (const size_t i = kFrom.find(c); i != std::string_view::npos) {
    out.push_back(kTo[i]);
    return absl::OkStatus();
  }
  if (c == 'x') return CodePoint(2, out);
  if (c == 'u') return CodePoint(4, out);
  if (c == 'U') return CodePoint(8, out);
  if (c == 'N')
    return LineError(line, "\\N{...} escapes are not supported; write the character itself");
  if (c == '\n') {
    ++line;
    return absl::OkStatus();
  }
  if (c < '0' || c > '7') {
    out.push_back('\\');
    --at;  // the character follows as it is, however many bytes it has
    line += c == '\n';
    out.push_back(source[at++]);
    return absl::OkStatus();
  }
  uint32_t value = static_cast<uint32_t>(c - '0');
  for (int i = 0; i < 2 && at < source.size() && source[at] >= '0' && source[at] <= '7'; ++i) {
    value = value * 8 + static_cast<uint32_t>(source[at++] - '0');
  }
  AppendCodePoint(out, value);
  return absl::OkStatus();
}

absl::Status ExpressionScanner::CodePoint(int digits, std::string& out) {
  uint32_t value = 0;
  for (int i = 0; i < digits; ++i, ++at) {
    const int digit = at < source.size() ? DigitValue(source[at]) : 99;
    if (digit >= 16) return LineError(line, "truncated \\x, \\u or \\U escape");
    value = value * 16 + static_cast<uint32_t>(digit);
  }
  if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
    return LineError(line, "an escape names no Unicode character");
  }
  AppendCodePoint(out, value);
  return absl::OkStatus();
}

}  // namespace hearth::jinja
