// The values a chat template works with: Python's, as far as templates can tell. Used by every file
// of the interpreter.
//
// Values are immutable and shared, except namespaces, the loop object and iterators. Depth is
// counted when a container is made, so no walk over a value recurses deeper than
// TemplateLimits::max_depth. Not thread-safe; constants of the parsed template are only read.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace hearth::jinja {

class Runtime;
class Value;
struct Scope;
struct MacroNode;

using Items = std::vector<Value>;
using ItemsPtr = std::shared_ptr<const Items>;

// What is known about a thing that isn't there: the message of the error that using it raises.
struct UndefinedObject {
  std::string message;
};

struct StringObject {
  std::string bytes;       // valid UTF-8
  int64_t n_code_points;   // Python's len()
  bool is_markup = false;  // marked safe: `+` escapes what is joined to it
  bool is_ascii() const { return n_code_points == static_cast<int64_t>(bytes.size()); }
};

// How much there is to walk. `weight` counts what is shared each time that it is met, since a walk
// does too.
struct Extent {
  int depth = 1;
  int64_t weight = 1;  // values, and 128 bytes of text each; saturates at kMaxWeight
  void Add(const Extent& child);
};
inline constexpr int64_t kMaxWeight = int64_t{1} << 60;

struct SequenceObject {
  ItemsPtr items;
  Extent extent;
  bool is_group = false;  // a tuple of groupby: has the attributes grouper and list
};

struct DictObject;
struct NamespaceObject;
struct LoopObject;
struct IteratorObject;
struct CallableObject;

// range(): never materialised before it is walked.
struct RangeObject {
  int64_t start, stop, step, size;
};

struct None {};
struct ListTag : SequenceObject {};
struct TupleTag : SequenceObject {};

class Value {
 public:
  // The order is that of the variant below.
  enum class Kind {
    kUndefined,
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kList,
    kTuple,
    kDict,
    kRange,
    kNamespace,
    kLoop,
    kIterator,
    kCallable
  };

  Value() = default;  // undefined, without a message
  Value(None) : data_(None{}) {}
  Value(bool value) : data_(value) {}
  Value(int value) : data_(int64_t{value}) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(const char* text) : Value(std::string_view(text)) {}
  Value(std::string_view text) : Value(std::string(text)) {}
  Value(std::string text, bool is_markup = false);
  Value(std::shared_ptr<const DictObject> dict) : data_(std::move(dict)) {}
  Value(std::shared_ptr<NamespaceObject> object) : data_(std::move(object)) {}
  Value(std::shared_ptr<LoopObject> object) : data_(std::move(object)) {}
  Value(std::shared_ptr<IteratorObject> object) : data_(std::move(object)) {}
  Value(std::shared_ptr<const CallableObject> object) : data_(std::move(object)) {}
  Value(std::shared_ptr<const RangeObject> object) : data_(std::move(object)) {}
  Value(const void*) = delete;  // a pointer must not become a bool

  static Value Undefined(std::string message);
  static Value List(Items items);
  static Value Tuple(Items items, bool is_group = false);

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is(Kind wanted) const { return kind() == wanted; }
  bool is_undefined() const { return is(Kind::kUndefined); }
  bool is_none() const { return is(Kind::kNone); }
  bool is_string() const { return is(Kind::kString); }
  bool is_dict() const { return is(Kind::kDict); }
  bool is_sequence() const { return is(Kind::kList) || is(Kind::kTuple); }
  bool is_integer() const {
    return is(Kind::kInt) || is(Kind::kBool);
  }  // bool is an int, as in Python
  bool is_number() const { return is_integer() || is(Kind::kFloat); }
  bool is_markup() const { return is_string() && string().is_markup; }

  // Each of these requires the kind that it names.
  const UndefinedObject* undefined() const { return std::get<0>(data_).get(); }
  int64_t integer() const;  // kInt or kBool
  double number() const;    // any number
  const StringObject& string() const { return *std::get<5>(data_); }
  const std::string& text() const { return string().bytes; }
  const SequenceObject& sequence() const;
  const Items& items() const { return *sequence().items; }
  const DictObject& dict() const { return *std::get<8>(data_); }
  const RangeObject& range() const { return *std::get<9>(data_); }
  NamespaceObject& ns() const { return *std::get<10>(data_); }
  LoopObject& loop() const { return *std::get<11>(data_); }
  IteratorObject& iterator() const { return *std::get<12>(data_); }
  const CallableObject& callable() const { return *std::get<13>(data_); }

  // Containers nested in each other below this value, itself included; 0 for scalars, 1 for a
  // namespace.
  int depth() const { return extent().depth; }
  int64_t weight() const { return extent().weight; }
  Extent extent() const;
  // The same object, not only an equal one.
  bool IsSameAs(const Value& other) const;

 private:
  std::variant<std::shared_ptr<const UndefinedObject>, None, bool, int64_t, double,
               std::shared_ptr<const StringObject>, std::shared_ptr<const ListTag>,
               std::shared_ptr<const TupleTag>, std::shared_ptr<const DictObject>,
               std::shared_ptr<const RangeObject>, std::shared_ptr<NamespaceObject>,
               std::shared_ptr<LoopObject>, std::shared_ptr<IteratorObject>,
               std::shared_ptr<const CallableObject>>
      data_;
};

using Result = absl::StatusOr<Value>;

struct ValueHash {
  size_t operator()(const Value& value) const;
};
// Python's ==; containers are compared by their content. Costs the smaller weight: spend it first.
bool Equals(const Value& a, const Value& b);
struct ValueEqual {
  bool operator()(const Value& a, const Value& b) const { return Equals(a, b); }
};
bool IsHashable(const Value& value);

// Keeps the order of insertion; setting a key again keeps its place.
struct DictObject {
  std::vector<std::pair<Value, Value>> entries;
  Extent extent;

  void Set(Value key, Value value);
  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const { return Find(Value(key)); }

 private:
  absl::flat_hash_map<Value, size_t, ValueHash, ValueEqual>
      index_;  // used once there are many entries
};

struct NamespaceObject {
  std::shared_ptr<DictObject> attributes = std::make_shared<DictObject>();
};

struct LoopObject {
  ItemsPtr items;
  int64_t index0 = 0;
  Extent extent;
  std::optional<Value> last_changed;
};

// What Python's lazy filters return: can be walked once, has no length.
struct IteratorObject {
  ItemsPtr items;
  size_t next = 0;
  Extent extent;
};

struct Arguments {
  Items positional;
  std::vector<std::pair<std::string, Value>> named;
};

// A filter, test, method or global: `self` is what it is applied to.
using Function = Result (*)(Runtime& runtime, const Value& self, const Arguments& arguments);

struct CallableObject {
  std::string name;
  Function function = nullptr;
  Value self;
  const MacroNode* macro = nullptr;  // instead of `function`
  std::shared_ptr<Scope> closure;    // where the macro was defined
  bool is_caller = false;            // the body of a call block
};

Extent ExtentOf(const Items& items);
std::string_view TypeName(const Value& value);  // Python's type(x).__name__
bool IsTrue(const Value& value);

}  // namespace hearth::jinja
