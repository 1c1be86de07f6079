#include "common/text/jinja/operators.h"

#include <cmath>
#include <limits>

#include "common/text/jinja/text.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

absl::Status Unsupported(std::string_view op, const Value& left, const Value& right) {
  const std::string_view shown = op == "**" ? "** or pow()" : op;
  return Fail("unsupported operand type(s) for ", shown, ": '", TypeName(left), "' and '",
              TypeName(right), "'");
}

absl::Status Overflow() { return Fail("an integer does not fit in 64 bits"); }

Result IntegerPower(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return Fail("0.0 cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return Overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return Overflow();
  }
  return Value(result);
}

Result IntegerArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+") return __builtin_add_overflow(a, b, &result) ? Result(Overflow()) : Value(result);
  if (op == "-") return __builtin_sub_overflow(a, b, &result) ? Result(Overflow()) : Value(result);
  if (op == "*") return __builtin_mul_overflow(a, b, &result) ? Result(Overflow()) : Value(result);
  if (op == "**") return IntegerPower(a, b);
  if (b == 0)
    return Fail(op == "/"   ? "division by zero"
                : op == "%" ? "integer modulo by zero"
                            : "integer division or modulo by zero");
  if (op == "/") return Value(static_cast<double>(a) / static_cast<double>(b));
  if (b == -1)
    return op == "%" ? Result(Value(0)) : IntegerArithmetic("-", 0, a);  // INT64_MIN / -1 traps
  const int64_t remainder = a % b;
  const bool rounds_down = remainder != 0 && (remainder < 0) != (b < 0);
  if (op == "%") return Value(rounds_down ? remainder + b : remainder);
  return Value(a / b - (rounds_down ? 1 : 0));
}

Result FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") {
    if (a == 0 && b < 0) return Fail("0.0 cannot be raised to a negative power");
    const double power = std::pow(a, b);
    if (std::isnan(power) && !std::isnan(a) && !std::isnan(b))
      return Fail("complex numbers are not supported");
    if (std::isinf(power) && std::isfinite(a) && std::isfinite(b))
      return Fail("Numerical result out of range");
    return Value(power);
  }
  if (b == 0)
    return Fail(op == "/"   ? "float division by zero"
                : op == "%" ? "float modulo"
                            : "float floor division by zero");
  if (op == "/") return Value(a / b);
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  if (op == "%") return Value(remainder == 0 ? std::copysign(0.0, b) : remainder);
  const double quotient = (a - remainder) / b;
  return Value(quotient == 0 ? std::copysign(0.0, a / b) : std::round(quotient));
}

Result AddSequences(Runtime& runtime, const Value& left, const Value& right) {
  HEARTH_RETURN_IF_ERROR(
      runtime.Spend(static_cast<int64_t>(left.items().size() + right.items().size())));
  Items items = left.items();
  items.insert(items.end(), right.items().begin(), right.items().end());
  return runtime.Checked(left.is(Kind::kList) ? Value::List(std::move(items))
                                              : Value::Tuple(std::move(items)));
}

Result AddStrings(Runtime& runtime, const Value& left, const Value& right) {
  TextBuilder out(runtime);
  const bool is_markup = left.is_markup() || right.is_markup();
  for (const Value* part : {&left, &right}) {
    out.Append(is_markup && !part->is_markup() ? std::string_view(EscapeHtml(part->text()))
                                               : part->text());
  }
  return out.Finish(is_markup);
}

Result Add(Runtime& runtime, const Value& left, const Value& right) {
  if (left.is_string() && right.is_string()) return AddStrings(runtime, left, right);
  if (left.is_sequence() && left.kind() == right.kind()) return AddSequences(runtime, left, right);
  if (left.is_string() || left.is_sequence()) {
    return Fail("can only concatenate ", TypeName(left), " (not \"", TypeName(right), "\") to ",
                TypeName(left));
  }
  return Unsupported("+", left, right);
}

Result Repeat(Runtime& runtime, const Value& value, int64_t times) {
  if (value.is_string()) {
    TextBuilder out(runtime);
    out.AppendRepeated(value.text(), times);
    return out.Finish(value.is_markup());
  }
  const Items& items = value.items();
  times = items.empty() || times < 0 ? 0 : times;
  int64_t total = 0;
  if (__builtin_mul_overflow(static_cast<int64_t>(items.size()), times, &total)) total = kMaxWeight;
  HEARTH_RETURN_IF_ERROR(runtime.Spend(total));
  Items out;
  for (int64_t i = 0; i < times; ++i) out.insert(out.end(), items.begin(), items.end());
  return runtime.Checked(value.is(Kind::kList) ? Value::List(std::move(out))
                                               : Value::Tuple(std::move(out)));
}

}  // namespace

absl::Status CheckDefined(const Value& value) {
  if (!value.is_undefined()) return absl::OkStatus();
  if (value.undefined() == nullptr) return Fail("value is undefined");
  return Fail(value.undefined()->message);
}

Result Unary(Runtime&, std::string_view op, const Value& operand) {
  if (op == "not") return Value(!IsTrue(operand));
  HEARTH_RETURN_IF_ERROR(CheckDefined(operand));
  if (!operand.is_number())
    return Fail("bad operand type for unary ", op, ": '", TypeName(operand), "'");
  if (operand.is(Kind::kFloat)) return Value(op == "-" ? -operand.number() : operand.number());
  return op == "-" ? IntegerArithmetic("-", 0, operand.integer()) : Value(operand.integer());
}

Result Binary(Runtime& runtime, std::string_view op, const Value& left, const Value& right) {
  if (left.is_string() && op == "%") return FormatPercent(runtime, left.text(), right);
  HEARTH_RETURN_IF_ERROR(CheckDefined(left));
  HEARTH_RETURN_IF_ERROR(CheckDefined(right));
  if (left.is_integer() && right.is_integer())
    return IntegerArithmetic(op, left.integer(), right.integer());
  if (left.is_number() && right.is_number())
    return FloatArithmetic(op, left.number(), right.number());
  if (op == "+") return Add(runtime, left, right);
  if (op == "*") {
    if ((left.is_string() || left.is_sequence()) && right.is_integer())
      return Repeat(runtime, left, right.integer());
    if ((right.is_string() || right.is_sequence()) && left.is_integer())
      return Repeat(runtime, right, left.integer());
    if (left.is_string() || left.is_sequence()) {
      return Fail("can't multiply sequence by non-int of type '", TypeName(right), "'");
    }
  }
  return Unsupported(op, left, right);
}

absl::StatusOr<bool> Less(Runtime& runtime, const Value& left, const Value& right,
                          std::string_view op) {
  HEARTH_RETURN_IF_ERROR(CheckDefined(left));
  HEARTH_RETURN_IF_ERROR(CheckDefined(right));
  HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
  if (left.is_integer() && right.is_integer()) return left.integer() < right.integer();
  if (left.is_number() && right.is_number()) return left.number() < right.number();
  if (left.is_string() && right.is_string()) {
    HEARTH_RETURN_IF_ERROR(runtime.SpendBytes(std::min(left.text().size(), right.text().size())));
    return left.text() < right.text();  // the order of UTF-8 bytes is that of code points
  }
  if (!left.is_sequence() || left.kind() != right.kind()) {
    return Fail("'", op, "' not supported between instances of '", TypeName(left), "' and '",
                TypeName(right), "'");
  }
  const Items &a = left.items(), &b = right.items();
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    HEARTH_ASSIGN_OR_RETURN(const bool is_equal, runtime.Equal(a[i], b[i]));
    if (!is_equal) return Less(runtime, a[i], b[i], op);
  }
  return a.size() < b.size();
}

absl::StatusOr<bool> Compare(Runtime& runtime, std::string_view op, const Value& left,
                             const Value& right) {
  if (op == "in") return Contains(runtime, right, left);
  if (op == "not in" || op == "!=") {
    HEARTH_ASSIGN_OR_RETURN(const bool holds,
                            Compare(runtime, op == "!=" ? "==" : "in", left, right));
    return !holds;
  }
  if (op == "==") return runtime.Equal(left, right);
  if (left.is_number() && right.is_number() && (left.is(Kind::kFloat) || right.is(Kind::kFloat))) {
    const double a = left.number(), b = right.number();  // a NaN is in no order
    return op == "<" ? a < b : op == ">" ? a > b : op == "<=" ? a <= b : a >= b;
  }
  if (op == "<") return Less(runtime, left, right, op);
  if (op == ">") {
    HEARTH_RETURN_IF_ERROR(Less(runtime, left, right, op).status());
    return Less(runtime, right, left, op);
  }
  HEARTH_ASSIGN_OR_RETURN(const bool is_less, Less(runtime, left, right, op));
  HEARTH_ASSIGN_OR_RETURN(const bool is_greater, Less(runtime, right, left, op));
  return op == "<=" ? !is_greater || is_less : !is_less || is_greater;
}

absl::StatusOr<bool> Contains(Runtime& runtime, const Value& container, const Value& item) {
  if (container.is_string()) {
    HEARTH_RETURN_IF_ERROR(CheckDefined(item));
    if (!item.is_string()) {
      return Fail("'in <string>' requires string as left operand, not ", TypeName(item));
    }
    HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(container.text().size()));
    return container.text().find(item.text()) != std::string::npos;
  }
  if (container.is_dict()) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(item.weight()));
    if (!IsHashable(item)) return Fail("unhashable type: '", TypeName(item), "'");
    return container.dict().Find(item) != nullptr;
  }
  if (container.is(Kind::kRange)) {
    const RangeObject& range = container.range();
    if (!item.is_number() || std::trunc(item.number()) != item.number()) return false;
    const double index =
        (item.number() - static_cast<double>(range.start)) / static_cast<double>(range.step);
    return index >= 0 && index < static_cast<double>(range.size) && std::trunc(index) == index;
  }
  if (!container.is_sequence() && !container.is_undefined() && !container.is(Kind::kIterator) &&
      !container.is(Kind::kLoop)) {
    return Fail("argument of type '", TypeName(container), "' is not iterable");
  }
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, container));
  for (const Value& candidate : *items) {
    HEARTH_ASSIGN_OR_RETURN(const bool is_equal, runtime.Equal(candidate, item));
    if (is_equal) return true;
  }
  return false;
}

}  // namespace hearth::jinja
