#include "common/text/tool_call.h"

#include "common/base/json.h"

namespace hearth {
namespace {

constexpr std::string_view kSpace = " \t\r\n";

// Where the value that begins at `at` of a valid JSON text ends.
size_t ValueEnd(std::string_view text, size_t at) {
  int depth = 0;
  bool in_string = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (in_string) {
      if (c == '\\') ++at;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (depth == 0 && (c == ',' || c == '}' || c == ']' || c == ':')) break;
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
  }
  return at;
}

std::string_view Stripped(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// The text of a member of a valid JSON object; of the last one where several have the name, as the
// parser takes it.
std::string_view RawMember(std::string_view object, std::string_view name) {
  std::string_view found;
  for (size_t at = object.find('{') + 1; at < object.size();) {
    const size_t key_end = ValueEnd(object, at);
    if (key_end >= object.size() || object[key_end] != ':') break;
    const auto key = ParseJson(Stripped(object.substr(at, key_end - at)));
    const size_t end = ValueEnd(object, key_end + 1);
    if (key.ok() && key->is_string() &&
        key->get_string() == json::string_view(name.data(), name.size()))
      found = Stripped(object.substr(key_end + 1, end - key_end - 1));
    at = end + 1;
  }
  return found;
}

}  // namespace

std::optional<ToolCallText> ParseToolCall(std::string_view text) {
  const auto parsed = ParseJson(Stripped(text));
  if (!parsed.ok() || !parsed->is_object()) return std::nullopt;
  const json::object& call = parsed->get_object();
  const json::value* name = call.if_contains("name");
  if (name == nullptr || !name->is_string() || name->get_string().empty()) return std::nullopt;
  ToolCallText out{.name = {name->get_string().data(), name->get_string().size()},
                   .arguments_json = "{}"};
  const json::value* arguments = call.if_contains("arguments");
  if (arguments == nullptr) return out;
  if (!arguments->is_object()) return std::nullopt;
  out.arguments_json = RawMember(text, "arguments");
  return out;
}

}  // namespace hearth
