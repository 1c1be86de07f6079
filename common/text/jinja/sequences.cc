// Lengths, loops, slices and sorting.
#include <algorithm>
#include <numeric>

#include "common/text/jinja/builtins.h"
#include "common/text/jinja/operators.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

absl::StatusOr<ItemsPtr> Characters(Runtime& runtime, const Value& value) {
  HEARTH_RETURN_IF_ERROR(runtime.Spend(value.string().n_code_points));
  auto items = std::make_shared<Items>();
  for (const char32_t c : DecodeUtf8(value.text()))
    items->push_back(Value(EncodeUtf8({&c, 1}), value.is_markup()));
  return items;
}

// What a slice takes of a sequence: `count` items from `first` on.
struct Cut {
  int64_t first, last, stride, count;  // `last` is not taken any more
  // For i below `count`: cannot overflow, since the item lies inside the sequence.
  int64_t At(int64_t i) const { return first + i * stride; }
};

absl::StatusOr<int64_t> SliceIndex(const Value& part) {
  if (part.is_integer()) return part.integer();
  return Fail("slice indices must be integers or None or have an __index__ method");
}

// Python's rules: negative indices count from the end, those beyond it are clamped.
absl::StatusOr<Cut> ResolveCut(int64_t size, const Value& start, const Value& stop,
                               const Value& step) {
  int64_t stride = 1;
  if (!step.is_none()) {
    HEARTH_ASSIGN_OR_RETURN(stride, SliceIndex(step));
  }
  if (stride == 0) return Fail("slice step cannot be zero");
  // Longer strides take the same one item, and this keeps the sums below from overflowing.
  stride = std::clamp<int64_t>(stride, -size - 1, size + 1);
  const bool is_forward = stride > 0;
  const auto bound = [&](const Value& part, int64_t absent) -> absl::StatusOr<int64_t> {
    if (part.is_none()) return absent;
    HEARTH_ASSIGN_OR_RETURN(int64_t at, SliceIndex(part));
    if (at < 0) at += size;
    return is_forward ? std::clamp<int64_t>(at, 0, size) : std::clamp<int64_t>(at, -1, size - 1);
  };
  HEARTH_ASSIGN_OR_RETURN(const int64_t first, bound(start, is_forward ? 0 : size - 1));
  HEARTH_ASSIGN_OR_RETURN(const int64_t last, bound(stop, is_forward ? size : -1));
  const int64_t span = is_forward ? last - first : first - last;
  const int64_t width = is_forward ? stride : -stride;
  return Cut{first, last, stride, span <= 0 ? 0 : (span + width - 1) / width};
}

Result SliceText(Runtime& runtime, const Value& value, const Cut& cut) {
  HEARTH_RETURN_IF_ERROR(runtime.SpendBytes(value.text().size()));
  if (cut.count == 0) return runtime.Text("", value.is_markup());
  if (value.string().is_ascii() && cut.stride == 1) {
    return runtime.Text(
        value.text().substr(static_cast<size_t>(cut.first), static_cast<size_t>(cut.count)),
        value.is_markup());
  }
  HEARTH_RETURN_IF_ERROR(runtime.SpendSlowBytes(value.text().size()));
  const std::u32string text = DecodeUtf8(value.text());
  std::u32string part;
  for (int64_t i = 0; i < cut.count; ++i) part.push_back(text[static_cast<size_t>(cut.At(i))]);
  return runtime.Text(EncodeUtf8(part), value.is_markup());
}

// A slice of a range is a range again. The ends that Python shows of it are those of the slice's
// own arithmetic.
Value SliceRange(const RangeObject& range, const Cut& cut) {
  const auto at = [&](int64_t i) { return range.start + i * range.step; };
  return Value(std::make_shared<const RangeObject>(
      RangeObject{at(cut.first), at(cut.last), range.step * cut.stride, cut.count}));
}

}  // namespace

absl::StatusOr<int64_t> Length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return value.string().n_code_points;
    case Kind::kList:
    case Kind::kTuple:
      return static_cast<int64_t>(value.items().size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().entries.size());
    case Kind::kRange:
      return value.range().size;
    case Kind::kLoop:
      return static_cast<int64_t>(value.loop().items->size());
    default:
      return Fail("object of type '", TypeName(value), "' has no len()");
  }
}

absl::StatusOr<ItemsPtr> Walk(Runtime& runtime, const Value& value) {
  auto items = std::make_shared<Items>();
  switch (value.kind()) {
    case Kind::kUndefined:
      return items;
    case Kind::kList:
    case Kind::kTuple:
      return value.sequence().items;
    case Kind::kString:
      return Characters(runtime, value);
    case Kind::kDict:
      HEARTH_RETURN_IF_ERROR(runtime.Spend(static_cast<int64_t>(value.dict().entries.size())));
      for (const auto& entry : value.dict().entries) items->push_back(entry.first);
      return items;
    case Kind::kRange: {
      const RangeObject& range = value.range();
      HEARTH_RETURN_IF_ERROR(runtime.Spend(range.size));
      for (int64_t i = 0; i < range.size; ++i)
        items->push_back(Value(range.start + i * range.step));
      return items;
    }
    case Kind::kIterator: {
      IteratorObject& iterator = value.iterator();
      const size_t begin = std::exchange(iterator.next, iterator.items->size());
      if (begin == 0) return iterator.items;
      HEARTH_RETURN_IF_ERROR(runtime.Spend(static_cast<int64_t>(iterator.items->size() - begin)));
      items->assign(iterator.items->begin() + static_cast<int64_t>(begin), iterator.items->end());
      return items;
    }
    default:
      return Fail("'", TypeName(value), "' object is not iterable");
  }
}

absl::StatusOr<int64_t> ToInteger(const Value& value) {
  HEARTH_RETURN_IF_ERROR(CheckDefined(value));
  if (value.is_integer()) return value.integer();
  return Fail("'", TypeName(value), "' object cannot be interpreted as an integer");
}

Result Slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop,
             const Value& step) {
  HEARTH_RETURN_IF_ERROR(CheckDefined(value));
  if (value.is_dict()) return Fail("unhashable type: 'slice'");
  if (!value.is_string() && !value.is_sequence() && !value.is(Kind::kRange))
    return Fail("'", TypeName(value), "' object is not subscriptable");
  HEARTH_ASSIGN_OR_RETURN(const int64_t size, Length(value));
  HEARTH_ASSIGN_OR_RETURN(const Cut cut, ResolveCut(size, start, stop, step));
  if (value.is_string()) return SliceText(runtime, value, cut);
  if (value.is(Kind::kRange)) return SliceRange(value.range(), cut);
  HEARTH_RETURN_IF_ERROR(runtime.Spend(cut.count));
  Items items;
  for (int64_t i = 0; i < cut.count; ++i)
    items.push_back(value.items()[static_cast<size_t>(cut.At(i))]);
  return value.is(Kind::kTuple) ? Value::Tuple(std::move(items)) : Value::List(std::move(items));
}

// A stable merge sort; std::stable_sort's comparison couldn't fail.
absl::StatusOr<Items> SortBy(Runtime& runtime, Items items, Items keys, bool reverse) {
  const size_t n = items.size();
  HEARTH_RETURN_IF_ERROR(runtime.Spend(static_cast<int64_t>(n)));
  std::vector<size_t> order(n), merged(n);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t width = 1; width < n; width *= 2) {
    for (size_t begin = 0; begin < n; begin += 2 * width) {
      size_t a = begin, b = std::min(begin + width, n);
      const size_t a_end = b, b_end = std::min(begin + 2 * width, n);
      for (size_t out = begin; out < b_end; ++out) {
        bool takes_b = a == a_end;
        if (!takes_b && b < b_end) {
          const Value &left = keys[order[a]], &right = keys[order[b]];
          HEARTH_ASSIGN_OR_RETURN(
              takes_b, reverse ? Less(runtime, left, right) : Less(runtime, right, left));
        }
        merged[out] = order[takes_b ? b++ : a++];
      }
    }
    order.swap(merged);
  }
  Items sorted;
  for (const size_t i : order) sorted.push_back(items[i]);
  return sorted;
}

}  // namespace hearth::jinja
