// Filters that apply others: map, select, reject, selectattr, rejectattr, attr.
#include "common/text/jinja/builtins.h"
#include "common/text/jinja/operators.h"

namespace hearth::jinja {
namespace {

Arguments WithoutFirst(const Arguments& arguments, size_t n) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(), rest.positional.begin() + static_cast<int64_t>(n));
  return rest;
}

absl::StatusOr<Items> MapAttribute(Runtime& runtime, const Items& items,
                                   const Arguments& arguments) {
  if (!arguments.positional.empty()) return Fail("map requires a filter argument");
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("map", arguments, {{"attribute"}, {"default", Value()}}));
  Items out;
  for (const Value& item : items) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
    HEARTH_ASSIGN_OR_RETURN(Value value, GetPath(runtime, item, bound[0]));
    out.push_back(value.is_undefined() && !bound[1].is_undefined() ? bound[1] : std::move(value));
  }
  return out;
}

Result Map(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!IsTrue(self)) return runtime.Iterator({});  // none and 0 too, as Jinja has it
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  if (arguments.positional.empty()) {
    if (arguments.named.empty()) return Fail("map requires a filter argument");
    HEARTH_ASSIGN_OR_RETURN(Items mapped, MapAttribute(runtime, *items, arguments));
    return runtime.Iterator(std::move(mapped));
  }
  const Value& name = arguments.positional[0];
  const Function filter = name.is_string() ? FindFilter(name.text()) : nullptr;
  if (filter == nullptr)
    return Fail("No filter named '", name.is_string() ? name.text() : "?", "'.");
  const Arguments rest = WithoutFirst(arguments, 1);
  Items mapped;
  for (const Value& item : *items) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
    HEARTH_ASSIGN_OR_RETURN(Value value, filter(runtime, item, rest));
    mapped.push_back(std::move(value));
  }
  return runtime.Iterator(std::move(mapped));
}

// Keeps the items of which a test (none: truth) says kWanted; with kAttribute, of an attribute of
// them.
template <bool kWanted, bool kAttribute>
Result Select(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!IsTrue(self)) return runtime.Iterator({});  // none and 0 too, as Jinja has it
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  constexpr size_t kTestAt = kAttribute ? 1 : 0;
  if (arguments.positional.size() < kTestAt) return Fail("Missing parameter for attribute name");
  Function test = nullptr;
  Arguments rest;
  if (arguments.positional.size() > kTestAt) {
    const Value& name = arguments.positional[kTestAt];
    test = name.is_string() ? FindTest(name.text()) : nullptr;
    if (test == nullptr) return Fail("No test named '", name.is_string() ? name.text() : "?", "'.");
    rest = WithoutFirst(arguments, kTestAt + 1);
  }
  Items kept;
  for (const Value& item : *items) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
    Value subject = item;
    if (kAttribute) {
      HEARTH_ASSIGN_OR_RETURN(subject, GetPath(runtime, item, arguments.positional[0]));
    }
    if (test != nullptr) {
      HEARTH_ASSIGN_OR_RETURN(subject, test(runtime, subject, rest));
    }
    if (IsTrue(subject) == kWanted) kept.push_back(item);
  }
  return runtime.Iterator(std::move(kept));
}

Result Attr(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("attr", arguments, {{"name"}}));
  if (!bound[0].is_string())
    return Fail("attribute name must be string, not '", TypeName(bound[0]), "'");
  if (self.is_dict() && self.dict().Find(bound[0]) != nullptr &&
      FindCollectionMethod(self.kind(), bound[0].text()) == nullptr) {
    return Value::Undefined("'dict object' has no attribute '" + bound[0].text() + "'");
  }
  return GetAttribute(runtime, self, bound[0].text());
}

}  // namespace

const std::initializer_list<NamedFunction> kSelectFilters = {
    {"map", Map},
    {"select", Select<true, false>},
    {"reject", Select<false, false>},
    {"selectattr", Select<true, true>},
    {"rejectattr", Select<false, true>},
    {"attr", Attr},
};

}  // namespace hearth::jinja
