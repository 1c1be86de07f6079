// Filters that rearrange sequences: join, sort, unique, groupby, batch ...
#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "common/text/jinja/builtins.h"
#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

const Value kNone{None{}};

// What the items are compared by: an attribute if one is named, in lower case unless case matters.
Result KeyOf(Runtime& runtime, const Value& item, const Value& attribute, bool case_sensitive) {
  HEARTH_ASSIGN_OR_RETURN(Value key,
                          attribute.is_none() ? Result(item) : GetPath(runtime, item, attribute));
  if (case_sensitive || !key.is_string()) return key;
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(key.text().size()));
  return runtime.Text(Lower(key.text()));
}

absl::StatusOr<Items> KeysOf(Runtime& runtime, const Items& items, const Value& attribute,
                             bool case_sensitive) {
  Items keys;
  for (const Value& item : items) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
    HEARTH_ASSIGN_OR_RETURN(Value key, KeyOf(runtime, item, attribute, case_sensitive));
    keys.push_back(std::move(key));
  }
  return keys;
}

Result Join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("join", arguments, {{"d", Value("")}, {"attribute", kNone}}));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  HEARTH_ASSIGN_OR_RETURN(const Value separator, Str(runtime, bound[0]));
  TextBuilder out(runtime);
  for (size_t i = 0; i < items->size() && !out.is_full(); ++i) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
    if (i > 0) out.Append(separator.text());
    HEARTH_ASSIGN_OR_RETURN(const Value item, KeyOf(runtime, (*items)[i], bound[1], true));
    HEARTH_RETURN_IF_ERROR(AppendStr(out, item));
  }
  return out.Finish();
}

Result ListFilter(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("list", arguments, {}).status());
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  return runtime.List(*items);
}

template <bool kLast>
Result End(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("first", arguments, {}).status());
  if (self.is(Kind::kIterator)) {
    IteratorObject& iterator = self.iterator();
    if (kLast) return Fail("'generator' object is not reversible");
    if (iterator.next < iterator.items->size()) return (*iterator.items)[iterator.next++];
    return Value::Undefined("No first item, sequence was empty.");
  }
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  if (!items->empty()) return kLast ? items->back() : items->front();
  return Value::Undefined(kLast ? "No last item, sequence was empty."
                                : "No first item, sequence was empty.");
}

Result Reverse(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("reverse", arguments, {}).status());
  if (self.is_string()) return Slice(runtime, self, kNone, kNone, Value(-1));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  return runtime.Iterator(Items(items->rbegin(), items->rend()));
}

// attribute="a,b" sorts by both.
absl::StatusOr<Items> SortKeys(Runtime& runtime, const Items& items, const Value& attribute,
                               bool case_sensitive) {
  if (!attribute.is_string() || attribute.text().find(',') == std::string::npos) {
    return KeysOf(runtime, items, attribute, case_sensitive);
  }
  std::vector<Items> parts(items.size());
  const std::string& text = attribute.text();
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    HEARTH_ASSIGN_OR_RETURN(
        Items keys, KeysOf(runtime, items, Value(text.substr(at, end - at)), case_sensitive));
    for (size_t i = 0; i < keys.size(); ++i) parts[i].push_back(keys[i]);
    at = end + 1;
  }
  Items keys;
  for (Items& part : parts) keys.push_back(Value::Tuple(std::move(part)));
  return keys;
}

Result Sort(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(
      const Items bound,
      Bind("sort", arguments,
           {{"reverse", Value(false)}, {"case_sensitive", Value(false)}, {"attribute", kNone}}));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  HEARTH_ASSIGN_OR_RETURN(Items keys, SortKeys(runtime, *items, bound[2], IsTrue(bound[1])));
  HEARTH_ASSIGN_OR_RETURN(Items sorted, SortBy(runtime, *items, std::move(keys), IsTrue(bound[0])));
  return runtime.List(std::move(sorted));
}

absl::StatusOr<Items> DictItems(Runtime& runtime, const Value& self) {
  Items items;
  HEARTH_RETURN_IF_ERROR(runtime.Spend(static_cast<int64_t>(self.dict().entries.size())));
  for (const auto& [key, value] : self.dict().entries) items.push_back(Value::Tuple({key, value}));
  return items;
}

Result DictSort(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(
      const Items bound,
      Bind("dictsort", arguments,
           {{"case_sensitive", Value(false)}, {"by", Value("key")}, {"reverse", Value(false)}}));
  const bool by_key = Equals(bound[1], Value("key"));
  if (!by_key && !Equals(bound[1], Value("value")))
    return Fail("You can only sort by either \"key\" or \"value\"");
  HEARTH_RETURN_IF_ERROR(CheckDefined(self));
  if (!self.is_dict()) return Fail(QuotedRepr(TypeName(self)), " object has no attribute 'items'");
  HEARTH_ASSIGN_OR_RETURN(Items items, DictItems(runtime, self));
  HEARTH_ASSIGN_OR_RETURN(Items keys,
                          KeysOf(runtime, items, Value(by_key ? 0 : 1), IsTrue(bound[0])));
  HEARTH_ASSIGN_OR_RETURN(Items sorted,
                          SortBy(runtime, std::move(items), std::move(keys), IsTrue(bound[2])));
  return runtime.List(std::move(sorted));
}

Result ItemsFilter(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(Bind("items", arguments, {}).status());
  if (self.is_undefined()) return runtime.Iterator({});
  if (!self.is_dict()) return Fail("Can only get item pairs from a mapping.");
  HEARTH_ASSIGN_OR_RETURN(Items items, DictItems(runtime, self));
  return runtime.Iterator(std::move(items));
}

Result Unique(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(
      const Items bound,
      Bind("unique", arguments, {{"case_sensitive", Value(false)}, {"attribute", kNone}}));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  absl::flat_hash_set<Value, ValueHash, ValueEqual> seen;
  Items unique;
  for (const Value& item : *items) {
    HEARTH_ASSIGN_OR_RETURN(const Value key, KeyOf(runtime, item, bound[1], IsTrue(bound[0])));
    HEARTH_RETURN_IF_ERROR(runtime.Spend(key.weight()));
    if (!IsHashable(key)) return Fail("unhashable type: '", TypeName(key), "'");
    if (seen.insert(key).second) unique.push_back(item);
  }
  return runtime.Iterator(std::move(unique));
}

template <bool kMax>
Result Extreme(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind(kMax ? "max" : "min", arguments,
                               {{"case_sensitive", Value(false)}, {"attribute", kNone}}));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  if (items->empty()) return Value::Undefined("No aggregated item, sequence was empty.");
  HEARTH_ASSIGN_OR_RETURN(const Items keys, KeysOf(runtime, *items, bound[1], IsTrue(bound[0])));
  size_t best = 0;
  for (size_t i = 1; i < keys.size(); ++i) {
    HEARTH_ASSIGN_OR_RETURN(const bool is_better,
                            Compare(runtime, kMax ? ">" : "<", keys[i], keys[best]));
    if (is_better) best = i;
  }
  return (*items)[best];
}

Result Sum(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("sum", arguments, {{"attribute", kNone}, {"start", Value(0)}}));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  if (bound[1].is_string()) return Fail("sum() can't sum strings [use ''.join(seq) instead]");
  Value total = bound[1];
  for (const Value& item : *items) {
    HEARTH_RETURN_IF_ERROR(runtime.Spend(1));
    HEARTH_ASSIGN_OR_RETURN(const Value term, KeyOf(runtime, item, bound[0], true));
    HEARTH_ASSIGN_OR_RETURN(total, Binary(runtime, "+", total, term));
  }
  return total;
}

Result Batch(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("batch", arguments, {{"linecount"}, {"fill_with", kNone}}));
  HEARTH_ASSIGN_OR_RETURN(const int64_t size, ToInteger(bound[0]));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  Items batches, batch;
  for (const Value& item : *items) {
    if (static_cast<int64_t>(batch.size()) == size) {
      batches.push_back(Value::List(std::exchange(batch, {})));
    }
    batch.push_back(item);
  }
  if (!batch.empty()) {
    if (!bound[1].is_none() && static_cast<int64_t>(batch.size()) < size) {
      HEARTH_RETURN_IF_ERROR(runtime.Spend(size));
      batch.resize(static_cast<size_t>(size), bound[1]);
    }
    batches.push_back(Value::List(std::move(batch)));
  }
  HEARTH_RETURN_IF_ERROR(runtime.Spend(static_cast<int64_t>(items->size())));
  return runtime.Iterator(std::move(batches));
}

Result SliceFilter(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(const Items bound,
                          Bind("slice", arguments, {{"slices"}, {"fill_with", kNone}}));
  HEARTH_ASSIGN_OR_RETURN(const int64_t n_slices, ToInteger(bound[0]));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  const auto size = static_cast<int64_t>(items->size());
  if (n_slices == 0) return Fail("integer division or modulo by zero");
  if (n_slices < 0) return runtime.Iterator({});
  HEARTH_RETURN_IF_ERROR(runtime.Spend(n_slices));
  HEARTH_RETURN_IF_ERROR(runtime.Spend(size));
  const int64_t per_slice = size / n_slices, n_longer = size % n_slices;
  Items slices;
  for (int64_t i = 0, at = 0; i < n_slices; ++i) {
    const int64_t n = per_slice + (i < n_longer ? 1 : 0);
    Items slice(items->begin() + at, items->begin() + at + n);
    at += n;
    if (!bound[1].is_none() && i >= n_longer) slice.push_back(bound[1]);
    slices.push_back(Value::List(std::move(slice)));
  }
  return runtime.Iterator(std::move(slices));
}

Result GroupBy(Runtime& runtime, const Value& self, const Arguments& arguments) {
  HEARTH_ASSIGN_OR_RETURN(
      const Items bound,
      Bind("groupby", arguments,
           {{"attribute"}, {"default", kNone}, {"case_sensitive", Value(false)}}));
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(runtime, self));
  const bool case_sensitive = IsTrue(bound[2]);
  Items keys, order;
  for (const Value& item : *items) {
    HEARTH_ASSIGN_OR_RETURN(Value key, KeyOf(runtime, item, bound[0], true));
    if (key.is_undefined() && !bound[1].is_none()) key = bound[1];
    HEARTH_ASSIGN_OR_RETURN(key, KeyOf(runtime, key, kNone, case_sensitive));
    keys.push_back(std::move(key));
    order.push_back(Value(static_cast<int64_t>(order.size())));
  }
  HEARTH_ASSIGN_OR_RETURN(order, SortBy(runtime, std::move(order), keys, false));
  Items groups, group;
  for (size_t i = 0; i < order.size(); ++i) {
    const auto at = static_cast<size_t>(order[i].integer());
    group.push_back((*items)[at]);
    if (i + 1 < order.size()) {
      HEARTH_ASSIGN_OR_RETURN(
          const bool same,
          runtime.Equal(keys[at], keys[static_cast<size_t>(order[i + 1].integer())]));
      if (same) continue;
    }
    HEARTH_ASSIGN_OR_RETURN(Value grouper, KeyOf(runtime, group[0], bound[0], true));
    if (grouper.is_undefined() && !bound[1].is_none()) grouper = bound[1];
    groups.push_back(Value::Tuple({grouper, Value::List(std::exchange(group, {}))}, true));
  }
  return runtime.List(std::move(groups));
}

}  // namespace

const std::initializer_list<NamedFunction> kSequenceFilters = {
    {"join", Join},       {"list", ListFilter},    {"first", End<false>},  {"last", End<true>},
    {"reverse", Reverse}, {"sort", Sort},          {"dictsort", DictSort}, {"items", ItemsFilter},
    {"unique", Unique},   {"min", Extreme<false>}, {"max", Extreme<true>}, {"sum", Sum},
    {"batch", Batch},     {"slice", SliceFilter},  {"groupby", GroupBy},
};

}  // namespace hearth::jinja
