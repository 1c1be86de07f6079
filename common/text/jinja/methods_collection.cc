// The methods of dict, list, tuple and the loop object that don't change them.
#include "common/text/jinja/builtins.h"
#include "common/text/jinja/operators.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

const Value kNone{None{}};

enum class Part { kKeys, kValues, kItems };

template <Part kPart>
Result DictView(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("items", arguments, {}).status());
  Items items;
  HEARTH_RETURN_IF_ERROR(runtime.Spend(static_cast<int64_t>(self.dict().entries.size())));
  for (const auto& [key, value] : self.dict().entries) {
    items.push_back(kPart == Part::kKeys     ? key
                    : kPart == Part::kValues ? value
                                             : Value::Tuple({key, value}));
  }
  return runtime.List(std::move(items));
}

Result DictGet(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!arguments.named.empty()) return Fail("dict.get() takes no keyword arguments");
  HEARTH_ASSIGN_OR_RETURN(const Items bound, Bind("get", arguments, {{"key"}, {"default", kNone}}));
  HEARTH_RETURN_IF_ERROR(runtime.Spend(bound[0].weight()));
  if (!IsHashable(bound[0])) return Fail("unhashable type: '", TypeName(bound[0]), "'");
  const Value* found = self.dict().Find(bound[0]);
  return found == nullptr ? bound[1] : *found;
}

Result Copy(Runtime&, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("copy", arguments, {}).status());
  return self;  // nothing can change it
}

template <bool kCount>
Result ListFind(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind(kCount ? "count" : "index", arguments, {{"value"}}));
  int64_t count = 0;
  for (size_t i = 0; i < self.items().size(); ++i) {
    HEARTH_ASSIGN_OR_RETURN(const bool is_equal, runtime.Equal(self.items()[i], bound[0]));
    if (is_equal && !kCount) return Value(static_cast<int64_t>(i));
    count += is_equal;
  }
  if (kCount) return Value(count);
  return Fail("value is not in the ", TypeName(self));
}

Result LoopCycle(Runtime&, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) return Fail("no items for cycling given");
  return arguments
      .positional[static_cast<size_t>(self.loop().index0) % arguments.positional.size()];
}

Result LoopChanged(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Value now, runtime.Tuple(arguments.positional));
  LoopObject& loop = self.loop();
  if (loop.last_changed.has_value()) {
    HEARTH_ASSIGN_OR_RETURN(const bool same, runtime.Equal(*loop.last_changed, now));
    if (same) return Value(false);
  }
  loop.last_changed = now;
  return Value(true);
}

}  // namespace

Function FindCollectionMethod(Kind kind, std::string_view name) {
  if (kind == Kind::kDict) {
    if (name == "items") return DictView<Part::kItems>;
    if (name == "keys") return DictView<Part::kKeys>;
    if (name == "values") return DictView<Part::kValues>;
    if (name == "get") return DictGet;
    if (name == "copy") return Copy;
  }
  if (kind == Kind::kList || kind == Kind::kTuple) {
    if (name == "index") return ListFind<false>;
    if (name == "count") return ListFind<true>;
    if (name == "copy" && kind == Kind::kList) return Copy;
  }
  if (kind == Kind::kLoop) {
    if (name == "cycle") return LoopCycle;
    if (name == "changed") return LoopChanged;
  }
  return nullptr;
}

}  // namespace hearth::jinja
