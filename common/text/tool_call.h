// One tool call as a model writes it: {"name": "f", "arguments": {...}}. Used by output_parser.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace hearth {

struct ToolCallText {
  std::string name;
  std::string arguments_json;
};

// Nullopt where the text is no JSON object with a name and, if at all, an object as arguments. The
// arguments stay as they are written, since clients send them back and the prompt of the next turn
// should begin with the same bytes.
std::optional<ToolCallText> ParseToolCall(std::string_view text);

}  // namespace hearth
