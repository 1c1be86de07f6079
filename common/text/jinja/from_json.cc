#include "common/text/jinja/from_json.h"

#include <limits>

namespace hearth::jinja {

Result FromJson(const json::value& value, int max_depth) {
  if (max_depth < 0)
    return Fail("what the chat template is given is nested too deeply; flatten it");
  switch (value.kind()) {
    case json::kind::null:
      return Value(None{});
    case json::kind::bool_:
      return Value(value.get_bool());
    case json::kind::int64:
      return Value(int64_t{value.get_int64()});
    case json::kind::uint64:
      if (value.get_uint64() > uint64_t{std::numeric_limits<int64_t>::max()}) {
        return Value(static_cast<double>(value.get_uint64()));
      }
      return Value(static_cast<int64_t>(value.get_uint64()));
    case json::kind::double_:
      return Value(value.get_double());
    case json::kind::string:
      return Value(std::string_view(value.get_string().data(), value.get_string().size()));
    case json::kind::array: {
      Items items;
      items.reserve(value.get_array().size());
      for (const json::value& element : value.get_array()) {
        HEARTH_ASSIGN_OR_RETURN(Value item, FromJson(element, max_depth - 1));
        items.push_back(std::move(item));
      }
      return Value::List(std::move(items));
    }
    case json::kind::object:
      break;
  }
  auto dict = std::make_shared<DictObject>();
  for (const auto& entry : value.get_object()) {
    HEARTH_ASSIGN_OR_RETURN(Value item, FromJson(entry.value(), max_depth - 1));
    dict->Set(Value(std::string_view(entry.key().data(), entry.key().size())), std::move(item));
  }
  return Value(std::shared_ptr<const DictObject>(std::move(dict)));
}

}  // namespace hearth::jinja
