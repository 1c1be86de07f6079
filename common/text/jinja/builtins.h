// Everything a template can name without being given it: filters, tests, global functions,
// attributes and methods.
#pragma once

#include <initializer_list>
#include <optional>
#include <string_view>

#include "common/text/jinja/runtime.h"
#include "common/text/jinja/value.h"

namespace hearth::jinja {

// Null where there is none.
Function FindFilter(std::string_view name);
Function FindTest(std::string_view name);
Function FindGlobal(std::string_view name);
Function FindStringMethod(std::string_view name);
Function FindCollectionMethod(Value::Kind kind, std::string_view name);

struct NamedFunction {
  std::string_view name;
  Function function;
};

// Tables of the files that the finders above search.
extern const std::initializer_list<NamedFunction> kTextFilters;
extern const std::initializer_list<NamedFunction> kNumberFilters;
extern const std::initializer_list<NamedFunction> kSequenceFilters;
extern const std::initializer_list<NamedFunction> kSelectFilters;

// x.name and x[key], in Jinja's order: `.` asks for attributes first, `[]` for items first. A
// missing one is undefined, not an error, unless `value` is undefined itself.
Result GetAttribute(Runtime& runtime, const Value& value, std::string_view name);
Result GetItem(Runtime& runtime, const Value& value, const Value& key);
// "a.b.0" as filters take it.
Result GetPath(Runtime& runtime, Value value, const Value& path);

// A parameter of a built-in function: required without a default.
struct Parameter {
  std::string_view name;
  std::optional<Value> fallback = std::nullopt;
};
// One value for each parameter; the errors are Python's.
absl::StatusOr<Items> Bind(std::string_view function, const Arguments& arguments,
                           std::initializer_list<Parameter> parameters);

absl::StatusOr<int64_t> ToInteger(const Value& value);  // as an index or count: no floats
Result MakeIndexed(Runtime& runtime, const Value& value, int64_t index);

}  // namespace hearth::jinja
