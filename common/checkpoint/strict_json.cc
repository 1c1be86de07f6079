#include "common/checkpoint/strict_json.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace hearth {
namespace {

// Collects the keys of every open object, and compares them when it closes.
struct KeyHandler {
  static constexpr size_t max_object_size = static_cast<size_t>(-1);
  static constexpr size_t max_array_size = static_cast<size_t>(-1);
  static constexpr size_t max_key_size = static_cast<size_t>(-1);
  static constexpr size_t max_string_size = static_cast<size_t>(-1);
  using Error = json::error_code;
  using Text = json::string_view;

  std::vector<std::vector<std::string>> open_objects;
  std::string key;
  std::string duplicate;
  bool found_duplicate = false;

  bool on_document_begin(Error&) { return true; }
  bool on_document_end(Error&) { return true; }
  bool on_object_begin(Error&) {
    open_objects.emplace_back();
    return true;
  }
  bool on_object_end(size_t, Error& error) {
    std::vector<std::string> keys = std::move(open_objects.back());
    open_objects.pop_back();
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice == keys.end()) return true;
    duplicate = *twice;
    found_duplicate = true;
    error = json::error::exception;  // stops the parser
    return false;
  }
  bool on_key_part(Text part, size_t, Error&) {
    key.append(part.data(), part.size());
    return true;
  }
  bool on_key(Text part, size_t, Error&) {
    key.append(part.data(), part.size());
    open_objects.back().push_back(std::exchange(key, {}));
    return true;
  }
  bool on_array_begin(Error&) { return true; }
  bool on_array_end(size_t, Error&) { return true; }
  bool on_string_part(Text, size_t, Error&) { return true; }
  bool on_string(Text, size_t, Error&) { return true; }
  bool on_number_part(Text, Error&) { return true; }
  bool on_int64(int64_t, Text, Error&) { return true; }
  bool on_uint64(uint64_t, Text, Error&) { return true; }
  bool on_double(double, Text, Error&) { return true; }
  bool on_bool(bool, Error&) { return true; }
  bool on_null(Error&) { return true; }
  bool on_comment_part(Text, Error&) { return true; }
  bool on_comment(Text, Error&) { return true; }
};

}  // namespace

absl::StatusOr<json::object> ParseStrictObject(std::string_view text, int max_depth) {
  auto value = ParseJson(text, max_depth);
  if (!value.ok()) return value.status();
  if (!value->is_object()) return absl::InvalidArgumentError("not a JSON object");
  json::parse_options options;
  options.max_depth = static_cast<size_t>(max_depth);
  json::basic_parser<KeyHandler> parser(options);
  json::error_code error;
  parser.write_some(false, text.data(), text.size(), error);
  if (parser.handler().found_duplicate) {
    return absl::InvalidArgumentError(
        absl::StrCat("key \"", parser.handler().duplicate, "\" given twice"));
  }
  return std::move(value->as_object());
}

}  // namespace hearth
