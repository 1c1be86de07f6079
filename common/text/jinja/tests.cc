// The tests of `is`.
#include <algorithm>
#include <cmath>

#include "common/text/jinja/builtins.h"
#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

template <bool (*kHolds)(const Value&)>
Result Simple(Runtime&, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("test", arguments, {}).status());
  return Value(kHolds(self));
}

bool IsDefined(const Value& v) { return !v.is_undefined(); }
bool IsUndefined(const Value& v) { return v.is_undefined(); }
bool IsNone(const Value& v) { return v.is_none(); }
bool IsString(const Value& v) { return v.is_string(); }
bool IsNumberTest(const Value& v) { return v.is_number(); }
bool IsInteger(const Value& v) { return v.is(Kind::kInt); }
bool IsFloat(const Value& v) { return v.is(Kind::kFloat); }
bool IsBoolean(const Value& v) { return v.is(Kind::kBool); }
bool IsTrueTest(const Value& v) { return v.is(Kind::kBool) && v.integer() != 0; }
bool IsFalseTest(const Value& v) { return v.is(Kind::kBool) && v.integer() == 0; }
bool IsMapping(const Value& v) { return v.is_dict(); }
bool IsCallable(const Value& v) {
  return v.is(Kind::kCallable) || v.is(Kind::kLoop) || v.is_undefined();
}
bool IsEscaped(const Value& v) { return v.is_markup(); }
bool IsSequence(const Value& v) {
  return v.is_string() || v.is_sequence() || v.is_dict() || v.is(Kind::kRange) || v.is_undefined();
}
bool IsIterable(const Value& v) {
  return IsSequence(v) || v.is(Kind::kIterator) || v.is(Kind::kLoop);
}

// str(x).islower() and isupper(): some letters, none of the other case.
template <bool kUpper>
Result HasCase(Runtime& runtime, const Value& self, const Arguments&) {
  HEARTH_ASSIGN_OR_RETURN(const Value text, Str(runtime, self));
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(text.text().size()));
  bool any = false;
  for (const char32_t c : DecodeUtf8(text.text())) {
    if (IsTitle(c) || (kUpper ? IsLower(c) : IsUpper(c))) return Value(false);
    any |= kUpper ? IsUpper(c) : IsLower(c);
  }
  return Value(any);
}

template <int kRemainder>
Result Parity(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("test", arguments, {}).status());
  HEARTH_ASSIGN_OR_RETURN(const Value remainder, Binary(runtime, "%", self, Value(2)));
  return Value(Equals(remainder, Value(kRemainder)));
}

Result DivisibleBy(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("divisibleby", arguments, {{"num"}}));
  HEARTH_ASSIGN_OR_RETURN(const Value remainder, Binary(runtime, "%", self, bound[0]));
  return Value(Equals(remainder, Value(0)));
}

constexpr char kEq[] = "==", kNe[] = "!=", kLt[] = "<", kGt[] = ">",
               kLe[] = "<=", kGe[] = ">=", kIn[] = "in";

template <const char* kOp>
Result Comparison(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("test", arguments, {{"other"}}));
  HEARTH_ASSIGN_OR_RETURN(const bool holds, Compare(runtime, kOp, self, bound[0]));
  return Value(holds);
}

Result SameAs(Runtime&, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("sameas", arguments, {{"other"}}));
  return Value(self.IsSameAs(bound[0]));
}

template <Function (*kFind)(std::string_view)>
Result Exists(Runtime&, const Value& self, const Arguments&) {
  return Value(self.is_string() && kFind(self.text()) != nullptr);
}

const std::initializer_list<NamedFunction> kTests = {
    {"defined", Simple<IsDefined>},
    {"undefined", Simple<IsUndefined>},
    {"none", Simple<IsNone>},
    {"string", Simple<IsString>},
    {"number", Simple<IsNumberTest>},
    {"integer", Simple<IsInteger>},
    {"float", Simple<IsFloat>},
    {"boolean", Simple<IsBoolean>},
    {"true", Simple<IsTrueTest>},
    {"false", Simple<IsFalseTest>},
    {"mapping", Simple<IsMapping>},
    {"sequence", Simple<IsSequence>},
    {"iterable", Simple<IsIterable>},
    {"callable", Simple<IsCallable>},
    {"escaped", Simple<IsEscaped>},
    {"lower", HasCase<false>},
    {"upper", HasCase<true>},
    {"odd", Parity<1>},
    {"even", Parity<0>},
    {"divisibleby", DivisibleBy},
    {"sameas", SameAs},
    {"in", Comparison<kIn>},
    {"eq", Comparison<kEq>},
    {"equalto", Comparison<kEq>},
    {"==", Comparison<kEq>},
    {"ne", Comparison<kNe>},
    {"!=", Comparison<kNe>},
    {"lt", Comparison<kLt>},
    {"lessthan", Comparison<kLt>},
    {"<", Comparison<kLt>},
    {"gt", Comparison<kGt>},
    {"greaterthan", Comparison<kGt>},
    {">", Comparison<kGt>},
    {"le", Comparison<kLe>},
    {"<=", Comparison<kLe>},
    {"ge", Comparison<kGe>},
    {">=", Comparison<kGe>},
    {"filter", Exists<FindFilter>},
    {"test", Exists<FindTest>},
};

}  // namespace

Function FindTest(std::string_view name) {
  for (const NamedFunction& test : kTests) {
    if (test.name == name) return test.function;
  }
  return nullptr;
}

Function FindFilter(std::string_view name) {
  for (const auto* table : {&kTextFilters, &kNumberFilters, &kSequenceFilters, &kSelectFilters}) {
    for (const NamedFunction& filter : *table) {
      if (filter.name == name) return filter.function;
    }
  }
  return nullptr;
}

}  // namespace hearth::jinja
