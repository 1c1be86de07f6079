// Filters about one value: default, length, int, float, abs, round.
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "common/text/jinja/builtins.h"
#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

Result Default(Runtime&, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(
      const Items bound,
      Bind("default", arguments, {{"default_value", Value("")}, {"boolean", Value(false)}}));
  return self.is_undefined() || (IsTrue(bound[1]) && !IsTrue(self)) ? bound[0] : self;
}

Result LengthFilter(Runtime&, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("len", arguments, {}).status());
  HEARTH_ASSIGN_OR_RETURN(const int64_t length, Length(self));
  return Value(length);
}

// Digits as Python's int() and float() read them: spaces around, single underscores between digits.
std::string NumberText(std::string_view text) {
  std::string out;
  const std::string stripped = Strip(text, true, true);
  for (size_t i = 0; i < stripped.size(); ++i) {
    const bool joins = stripped[i] == '_' && i > 0 && i + 1 < stripped.size() &&
                       std::isalnum(static_cast<unsigned char>(stripped[i - 1])) &&
                       std::isalnum(static_cast<unsigned char>(stripped[i + 1]));
    if (!joins) out.push_back(stripped[i]);
  }
  return out;
}

std::optional<int64_t> ParseInteger(std::string_view raw, int base) {
  std::string text = NumberText(raw);
  const bool is_negative = !text.empty() && text[0] == '-';
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.erase(0, 1);
  const char prefix = text.size() > 2 && text[0] == '0' ? static_cast<char>(text[1] | 0x20) : '\0';
  if ((base == 16 && prefix == 'x') || (base == 8 && prefix == 'o') || (base == 2 && prefix == 'b'))
    text.erase(0, 2);
  if (text.empty() || text[0] == '-') return std::nullopt;
  int64_t value = 0;
  if (is_negative) text.insert(0, "-");
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<double> ParseFloat(std::string_view raw) {
  const std::string text = NumberText(raw);
  if (text.empty() || text.find_first_of("xX(") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end != text.c_str() + text.size()) return std::nullopt;
  return value;
}

Result Truncated(double value, const Value& fallback) {
  if (std::isnan(value)) return fallback;
  if (std::isinf(value)) return Fail("cannot convert float infinity to integer");
  if (std::abs(value) >= 9.2e18) return Fail("an integer does not fit in 64 bits");
  return Value(static_cast<int64_t>(value));
}

Result Int(Runtime&, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("int", arguments, {{"default", Value(0)}, {"base", Value(10)}}));
  if (self.is_undefined()) HEARTH_RETURN_IF_ERROR(CheckDefined(self));
  if (self.is_integer()) return Value(self.integer());
  if (self.is(Kind::kFloat)) return Truncated(self.number(), bound[0]);
  if (!self.is_string()) return bound[0];
  HEARTH_ASSIGN_OR_RETURN(const int64_t base, ToInteger(bound[1]));
  if (base < 2 || base > 36) return Fail("int: the base must lie between 2 and 36");
  if (const auto value = ParseInteger(self.text(), static_cast<int>(base))) return Value(*value);
  if (const auto value = ParseFloat(self.text())) return Truncated(*value, bound[0]);
  return bound[0];
}

Result Float(Runtime&, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("float", arguments, {{"default", Value(0.0)}}));
  if (self.is_undefined()) HEARTH_RETURN_IF_ERROR(CheckDefined(self));
  if (self.is_number()) return Value(self.number());
  if (!self.is_string()) return bound[0];
  const auto value = ParseFloat(self.text());
  return value.has_value() ? Value(*value) : bound[0];
}

Result Abs(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("abs", arguments, {}).status());
  HEARTH_RETURN_IF_ERROR(CheckDefined(self));
  if (!self.is_number()) return Fail("bad operand type for abs(): '", TypeName(self), "'");
  if (self.is(Kind::kFloat)) return Value(std::abs(self.number()));
  return self.integer() < 0 ? Unary(runtime, "-", self) : Value(self.integer());
}

// To `precision` decimals, half to even by the exact binary value, as Python's round().
Result RoundCommon(const Value& self, int64_t precision) {
  if (self.is_integer()) {
    if (precision >= 0) return Value(self.integer());
    if (precision < -18) return Value(0);
    int64_t unit = 1;
    for (; precision < 0; ++precision) unit *= 10;
    int64_t rest = self.integer() % unit;
    int64_t base = self.integer() - rest;
    if (rest < 0) rest += unit, base -= unit;
    const bool up = rest > unit - rest || (rest == unit - rest && (base / unit) % 2 != 0);
    return Value(up ? base + unit : base);
  }
  const double value = self.number();
  if (!std::isfinite(value) || precision > 308) return Value(value);
  if (precision < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-std::max<int64_t>(precision, -308)));
    return Value(std::nearbyint(value / unit) * unit);
  }
  char buffer[700];
  std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(precision), value);
  return Value(std::strtod(buffer, nullptr));
}

Result Round(Runtime&, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(
      const Items bound,
      Bind("round", arguments, {{"precision", Value(0)}, {"method", Value("common")}}));
  HEARTH_RETURN_IF_ERROR(CheckDefined(self));
  if (!bound[1].is_string()) return Fail("method must be common, ceil or floor");
  const std::string& method = bound[1].text();
  if (method != "common" && method != "ceil" && method != "floor")
    return Fail("method must be common, ceil or floor");
  if (!self.is_number()) return Fail("type ", TypeName(self), " doesn't define __round__ method");
  HEARTH_ASSIGN_OR_RETURN(const int64_t precision, ToInteger(bound[0]));
  if (method == "common") return RoundCommon(self, precision);
  const double unit = std::pow(10.0, static_cast<double>(precision));
  return Value(
      (method == "ceil" ? std::ceil(self.number() * unit) : std::floor(self.number() * unit)) /
      unit);
}

}  // namespace

const std::initializer_list<NamedFunction> kNumberFilters = {
    {"default", Default},
    {"d", Default},
    {"length", LengthFilter},
    {"count", LengthFilter},
    {"int", Int},
    {"float", Float},
    {"abs", Abs},
    {"round", Round},
};

}  // namespace hearth::jinja
