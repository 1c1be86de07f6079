#include "common/text/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "absl/hash/hash.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

// Below this many entries a walk is quicker than a hash.
constexpr size_t kIndexFrom = 8;

bool ItemsEqual(const Items& a, const Items& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), Equals);
}

bool DictsEqual(const DictObject& a, const DictObject& b) {
  if (a.entries.size() != b.entries.size()) return false;
  return std::all_of(a.entries.begin(), a.entries.end(), [&](const auto& entry) {
    const Value* other = b.Find(entry.first);
    return other != nullptr && Equals(entry.second, *other);
  });
}

}  // namespace

void Extent::Add(const Extent& child) {
  depth = std::max(depth, 1 + child.depth);
  weight = std::min(kMaxWeight, weight + child.weight);
}

Extent ExtentOf(const Items& items) {
  Extent extent;
  for (const Value& item : items) extent.Add(item.extent());
  return extent;
}

Value::Value(std::string text, bool is_markup) {
  const int64_t n = CountCodePoints(text);
  data_ = std::make_shared<const StringObject>(StringObject{std::move(text), n, is_markup});
}

Value Value::Undefined(std::string message) {
  Value value;
  value.data_ = std::make_shared<const UndefinedObject>(UndefinedObject{std::move(message)});
  return value;
}

Value Value::List(Items items) {
  const Extent extent = ExtentOf(items);
  Value value;
  value.data_ = std::make_shared<const ListTag>(
      ListTag{{std::make_shared<const Items>(std::move(items)), extent, false}});
  return value;
}

Value Value::Tuple(Items items, bool is_group) {
  const Extent extent = ExtentOf(items);
  Value value;
  value.data_ = std::make_shared<const TupleTag>(
      TupleTag{{std::make_shared<const Items>(std::move(items)), extent, is_group}});
  return value;
}

int64_t Value::integer() const { return is(Kind::kBool) ? std::get<2>(data_) : std::get<3>(data_); }

double Value::number() const {
  return is(Kind::kFloat) ? std::get<4>(data_) : static_cast<double>(integer());
}

const SequenceObject& Value::sequence() const {
  if (is(Kind::kList)) return *std::get<6>(data_);
  return *std::get<7>(data_);
}

Extent Value::extent() const {
  switch (kind()) {
    case Kind::kString:
      return {0, 1 + static_cast<int64_t>(text().size() / 128)};
    case Kind::kList:
    case Kind::kTuple:
      return sequence().extent;
    case Kind::kDict:
      return dict().extent;
    case Kind::kLoop:
      return loop().extent;
    case Kind::kIterator:
      return iterator().extent;
    case Kind::kCallable:
      return {1 + callable().self.depth(), 1};
    case Kind::kNamespace:
      return {1, 1};
    default:
      return {0, 1};
  }
}

bool Value::IsSameAs(const Value& other) const {
  if (kind() != other.kind()) return false;
  switch (kind()) {
    case Kind::kNone:
      return true;
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
      return Equals(*this, other);
    case Kind::kString:
      return &string() == &other.string() || text() == other.text();
    default:
      return std::visit(
          [&](const auto& mine) {
            if constexpr (requires { mine.get(); }) {
              return mine == std::get<std::decay_t<decltype(mine)>>(other.data_);
            } else {
              return false;
            }
          },
          data_);
  }
}

size_t ValueHash::operator()(const Value& value) const {
  switch (value.kind()) {
    case Kind::kString:
      return absl::HashOf(value.text());
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
      return absl::HashOf(value.number());  // 1, 1.0 and true are one key
    case Kind::kTuple: {
      size_t hash = 0;
      for (const Value& item : value.items()) hash = absl::HashOf(hash, (*this)(item));
      return hash;
    }
    default:
      return absl::HashOf(static_cast<int>(value.kind()));
  }
}

bool IsHashable(const Value& value) {
  if (value.is(Kind::kList) || value.is(Kind::kDict)) return false;
  if (!value.is(Kind::kTuple)) return true;
  return std::all_of(value.items().begin(), value.items().end(), IsHashable);
}

bool Equals(const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return a.text() == b.text();
    case Kind::kList:
    case Kind::kTuple:
      return &a.items() == &b.items() || ItemsEqual(a.items(), b.items());
    case Kind::kDict:
      return &a.dict() == &b.dict() || DictsEqual(a.dict(), b.dict());
    case Kind::kRange: {
      const RangeObject &x = a.range(), &y = b.range();
      if (x.size != y.size) return false;
      return x.size == 0 || (x.start == y.start && (x.size == 1 || x.step == y.step));
    }
    default:
      return a.IsSameAs(b);
  }
}

void DictObject::Set(Value key, Value value) {
  extent.Add(key.extent());
  extent.Add(value.extent());
  if (const Value* old = Find(key)) {
    *const_cast<Value*>(old) = std::move(value);
    return;
  }
  entries.emplace_back(std::move(key), std::move(value));
  if (entries.size() < kIndexFrom) return;
  if (index_.empty()) {
    for (size_t i = 0; i < entries.size(); ++i) index_.emplace(entries[i].first, i);
  } else {
    index_.emplace(entries.back().first, entries.size() - 1);
  }
}

const Value* DictObject::Find(const Value& key) const {
  if (!index_.empty()) {
    const auto it = index_.find(key);
    return it == index_.end() ? nullptr : &entries[it->second].second;
  }
  for (const auto& entry : entries) {
    if (Equals(entry.first, key)) return &entry.second;
  }
  return nullptr;
}

std::string_view TypeName(const Value& value) {
  static constexpr std::string_view kNames[] = {
      "Undefined", "NoneType", "bool",  "int",       "float",       "str",       "list",
      "tuple",     "dict",     "range", "Namespace", "LoopContext", "generator", "function"};
  if (value.is_markup()) return "Markup";
  if (value.is(Kind::kCallable) && value.callable().macro != nullptr) return "Macro";
  return kNames[static_cast<size_t>(value.kind())];
}

bool IsTrue(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.number() != 0;
    case Kind::kString:
      return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple:
      return !value.items().empty();
    case Kind::kDict:
      return !value.dict().entries.empty();
    case Kind::kRange:
      return value.range().size > 0;
    case Kind::kLoop:
      return !value.loop().items->empty();
    default:
      return true;
  }
}

}  // namespace hearth::jinja
