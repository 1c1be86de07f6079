// Argument binding, attributes and items, and the global functions.
#include "common/text/jinja/builtins.h"

#include <algorithm>
#include <ctime>

#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

// range() of the sandbox is bounded; ours by the same number.
constexpr int64_t kMaxRange = 100'000;

// As Jinja names an object in its messages.
std::string ObjectName(const Value& value) {
  if (value.is_none()) return "None";
  if (value.is(Kind::kNamespace)) return "jinja2.utils.Namespace object";
  if (value.is(Kind::kLoop)) return "jinja2.runtime.LoopContext object";
  if (value.is(Kind::kCallable) && value.callable().macro != nullptr)
    return "jinja2.runtime.Macro object";
  return Concat(TypeName(value), " object");
}

Value Missing(const Value& value, std::string_view name) {
  return Value::Undefined(Concat("'", ObjectName(value), "' has no attribute ", QuotedRepr(name)));
}

// Names that reach into Python there: here there is nothing behind them, and the message is the
// sandbox's.
bool IsPrivate(std::string_view name) { return name.starts_with("__") && name.ends_with("__"); }

bool IsMutator(const Value& value, std::string_view name) {
  static constexpr std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  static constexpr std::string_view kList[] = {"append", "reverse", "insert", "sort",
                                               "extend", "remove",  "clear",  "pop"};
  if (value.is_dict())
    return std::find(std::begin(kDict), std::end(kDict), name) != std::end(kDict);
  return value.is(Kind::kList) &&
         std::find(std::begin(kList), std::end(kList), name) != std::end(kList);
}

Result Bound(Runtime& runtime, std::string_view name, Function function, const Value& self) {
  auto method = std::make_shared<CallableObject>();
  method->name = name;
  method->function = function;
  method->self = self;
  return runtime.Checked(Value(std::shared_ptr<const CallableObject>(std::move(method))));
}

std::optional<Value> LoopAttribute(const LoopObject& loop, std::string_view name) {
  const auto size = static_cast<int64_t>(loop.items->size());
  const auto at = [&](int64_t i, std::string_view what) {
    if (i < 0 || i >= size) return Value::Undefined(Concat("there is no ", what, " item"));
    return (*loop.items)[static_cast<size_t>(i)];
  };
  if (name == "index") return Value(loop.index0 + 1);
  if (name == "index0") return Value(loop.index0);
  if (name == "revindex") return Value(size - loop.index0);
  if (name == "revindex0") return Value(size - loop.index0 - 1);
  if (name == "first") return Value(loop.index0 == 0);
  if (name == "last") return Value(loop.index0 + 1 == size);
  if (name == "length") return Value(size);
  if (name == "depth") return Value(1);
  if (name == "depth0") return Value(0);
  if (name == "previtem") return at(loop.index0 - 1, "previous");
  if (name == "nextitem") return at(loop.index0 + 1, "next");
  return std::nullopt;
}

// Attributes that the value has as an object, not as a container. Nullopt where there is none.
absl::StatusOr<std::optional<Value>> OwnAttribute(Runtime& runtime, const Value& value,
                                                  std::string_view name) {
  if (IsPrivate(name) || IsMutator(value, name)) {
    if (IsPrivate(name) && value.is_dict() && value.dict().Find(name) != nullptr)
      return std::nullopt;
    return Value::Undefined(Concat("access to attribute ", QuotedRepr(name), " of '",
                                   TypeName(value), "' object is unsafe."));
  }
  if (value.is(Kind::kNamespace)) {
    const Value* attribute = value.ns().attributes->Find(name);
    return attribute == nullptr ? std::nullopt : std::optional<Value>(*attribute);
  }
  if (value.is(Kind::kLoop)) {
    if (auto attribute = LoopAttribute(value.loop(), name)) return attribute;
  }
  if (value.is(Kind::kTuple) && value.sequence().is_group) {
    if (name == "grouper") return value.items()[0];
    if (name == "list") return value.items()[1];
  }
  const Function method =
      value.is_string() ? FindStringMethod(name) : FindCollectionMethod(value.kind(), name);
  if (method == nullptr) return std::nullopt;
  HEARTH_ASSIGN_OR_RETURN(Value bound, Bound(runtime, name, method, value));
  return bound;
}

// value[key]; nullopt where Python raises a lookup or type error.
absl::StatusOr<std::optional<Value>> OwnItem(Runtime& runtime, const Value& value,
                                             const Value& key) {
  if (value.is_dict()) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(key.weight()));
    if (!IsHashable(key)) return std::nullopt;
    const Value* found = value.dict().Find(key);
    return found == nullptr ? std::nullopt : std::optional<Value>(*found);
  }
  if (!key.is_integer()) return std::nullopt;
  if (!value.is_string() && !value.is_sequence() && !value.is(Kind::kRange)) return std::nullopt;
  HEARTH_ASSIGN_OR_RETURN(const int64_t size, Length(value));
  const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
  if (index < 0 || index >= size) return std::nullopt;
  if (value.is_sequence()) return value.items()[static_cast<size_t>(index)];
  if (value.is(Kind::kRange)) return Value(value.range().start + index * value.range().step);
  HEARTH_ASSIGN_OR_RETURN(Value character,
                          Slice(runtime, value, Value(index), Value(index + 1), Value(None{})));
  return character;
}

Result Range(Runtime&, const Value&, const Arguments& arguments) {
  if (!arguments.named.empty()) return Fail("range() takes no keyword arguments");
  const size_t n = arguments.positional.size();
  if (n == 0 || n > 3) return Fail("range expected 1 to 3 arguments, got ", std::to_string(n));
  int64_t parts[3] = {0, 0, 1};
  for (size_t i = 0; i < n; ++i) {
    HEARTH_ASSIGN_OR_RETURN(parts[n == 1 ? 1 : i], ToInteger(arguments.positional[i]));
  }
  const auto [start, stop, step] = parts;
  if (step == 0) return Fail("range() arg 3 must not be zero");
  const __int128 span = static_cast<__int128>(stop) - start;
  const __int128 size =
      (span > 0) == (step > 0) && span != 0 ? (span + step - (step > 0 ? 1 : -1)) / step : 0;
  if (size > kMaxRange) {
    return Fail("Range too big. The sandbox blocks ranges larger than MAX_RANGE (",
                std::to_string(kMaxRange), ").");
  }
  return Value(std::make_shared<const RangeObject>(
      RangeObject{start, stop, step, static_cast<int64_t>(size)}));
}

Result Dict(Runtime& runtime, const Value&, const Arguments& arguments) {
  auto dict = std::make_shared<DictObject>();
  if (arguments.positional.size() > 1) {
    return Fail("dict expected at most 1 argument, got ",
                std::to_string(arguments.positional.size()));
  }
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    HEARTH_RETURN_IF_ERROR(runtime.Spend(source.weight()));
    if (source.is_dict()) {
      *dict = source.dict();
    } else {
      HEARTH_ASSIGN_OR_RETURN(const ItemsPtr pairs, Walk(runtime, source));
      for (const Value& pair : *pairs) {
        HEARTH_ASSIGN_OR_RETURN(const ItemsPtr parts, Walk(runtime, pair));
        if (parts->size() != 2)
          return Fail("dictionary update sequence element has length ",
                      std::to_string(parts->size()), "; 2 is required");
        if (!IsHashable((*parts)[0])) return Fail("unhashable type: '", TypeName((*parts)[0]), "'");
        dict->Set((*parts)[0], (*parts)[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) dict->Set(name, value);
  return runtime.Checked(Value(std::shared_ptr<const DictObject>(std::move(dict))));
}

Result Namespace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Value attributes, Dict(runtime, self, arguments));
  return runtime.NewNamespace(std::make_shared<DictObject>(attributes.dict()));
}

Result RaiseException(Runtime&, const Value&, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("raise_exception", arguments, {{"message"}}));
  return Fail(bound[0].is_string() ? bound[0].text() : std::string(TypeName(bound[0])));
}

Result StrftimeNow(Runtime& runtime, const Value&, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("strftime_now", arguments, {{"format"}}));
  if (!bound[0].is_string())
    return Fail("strftime() argument 1 must be str, not ", TypeName(bound[0]));
  constexpr size_t kMaxFormat = 256;
  const std::string& format = bound[0].text();
  if (format.empty()) return Value("");
  if (format.size() > kMaxFormat || format.find_first_of("0123456789") != std::string::npos) {
    return Fail("strftime_now takes a format of at most 256 bytes without field widths");
  }
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::string out(64 * kMaxFormat, '\0');
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &local));
  return runtime.Text(std::move(out));
}

}  // namespace

Function FindGlobal(std::string_view name) {
  if (name == "range") return Range;
  if (name == "dict") return Dict;
  if (name == "namespace") return Namespace;
  if (name == "raise_exception") return RaiseException;
  if (name == "strftime_now") return StrftimeNow;
  return nullptr;
}

Result GetAttribute(Runtime& runtime, const Value& value, std::string_view name) {
  HEARTH_RETURN_IF_ERROR(CheckDefined(value));
  HEARTH_ASSIGN_OR_RETURN(std::optional<Value> attribute, OwnAttribute(runtime, value, name));
  if (attribute.has_value()) return *std::move(attribute);
  if (value.is_dict()) {
    if (const Value* found = value.dict().Find(name)) return *found;
  }
  return Missing(value, name);
}

Result GetItem(Runtime& runtime, const Value& value, const Value& key) {
  HEARTH_RETURN_IF_ERROR(CheckDefined(value));
  HEARTH_ASSIGN_OR_RETURN(std::optional<Value> item, OwnItem(runtime, value, key));
  if (item.has_value()) return *std::move(item);
  if (!key.is_string()) {
    HEARTH_ASSIGN_OR_RETURN(const Value shown,
                            key.is_undefined() ? Result(Value("Undefined")) : Repr(runtime, key));
    return Value::Undefined(Concat(ObjectName(value), " has no element ", shown.text()));
  }
  HEARTH_ASSIGN_OR_RETURN(item, OwnAttribute(runtime, value, key.text()));
  if (item.has_value()) return *std::move(item);
  return Missing(value, key.text());
}

Result GetPath(Runtime& runtime, Value value, const Value& path) {
  if (!path.is_string()) return GetItem(runtime, value, path);
  const std::string& text = path.text();
  for (size_t at = 0; at <= text.size();) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
    const size_t end = std::min(text.find('.', at), text.size());
    const std::string part = text.substr(at, end - at);
    const bool is_index = !part.empty() && part.size() < 10 &&
                          part.find_first_not_of("0123456789") == std::string::npos;
    HEARTH_ASSIGN_OR_RETURN(
        value, GetItem(runtime, value, is_index ? Value(std::stoi(part)) : Value(part)));
    at = end + 1;
  }
  return value;
}

absl::StatusOr<Items> Bind(std::string_view function, const Arguments& arguments,
                           std::initializer_list<Parameter> parameters) {
  if (arguments.positional.size() > parameters.size()) {
    return Fail(function, "() takes at most ", std::to_string(parameters.size()), " arguments (",
                std::to_string(arguments.positional.size()), " given)");
  }
  std::vector<std::optional<Value>> slots(parameters.size());
  std::copy(arguments.positional.begin(), arguments.positional.end(), slots.begin());
  for (const auto& [name, value] : arguments.named) {
    const auto* found =
        std::find_if(parameters.begin(), parameters.end(),
                     [&name = name](const Parameter& parameter) { return parameter.name == name; });
    if (found == parameters.end())
      return Fail(function, "() got an unexpected keyword argument '", name, "'");
    auto& slot = slots[static_cast<size_t>(found - parameters.begin())];
    if (slot.has_value()) return Fail(function, "() got multiple values for argument '", name, "'");
    slot = value;
  }
  Items bound;
  for (size_t i = 0; i < slots.size(); ++i) {
    const Parameter& parameter = parameters.begin()[i];
    if (!slots[i].has_value() && !parameter.fallback.has_value()) {
      return Fail(function, "() missing 1 required positional argument: '", parameter.name, "'");
    }
    bound.push_back(slots[i].has_value() ? *slots[i] : *parameter.fallback);
  }
  return bound;
}

}  // namespace hearth::jinja
