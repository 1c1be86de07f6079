// Fuzzes chat templates: whatever the template says, rendering ends soon with a text within the
// budget or with an error, and parsing with a tree or an error.
//
// Seeds: corpus/chat_template, and tests/golden/chat-templates as a second folder.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "common/base/json.h"
#include "common/text/chat_template.h"

namespace hearth {
namespace {

constexpr size_t kMaxSource = 64 << 10;
// Small enough for thousands of runs a second, large enough for the golden templates.
constexpr TemplateLimits kLimits{
    .max_steps = 20'000, .max_depth = 24, .max_output_bytes = 64 << 10};

const json::object& Conversation() {
  static const json::object variables = ParseJson(R"({
        "messages": [
          {"role": "system", "content": "Be brief."},
          {"role": "user", "content": "Größe? 🎉\n"},
          {"role": "assistant", "content": null, "reasoning_content": "hm",
           "tool_calls": [{"id": "1", "type": "function",
                           "function": {"name": "f", "arguments": {"a": [1, 2.5, true, null]}}}]},
          {"role": "tool", "content": "3", "tool_call_id": "1"},
          {"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "tools": [{"type": "function",
                   "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
        "add_generation_prompt": true, "x": "<b>", "n": -7})")
                                            ->get_object();
  return variables;
}

}  // namespace
}  // namespace hearth

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hearth;
  if (size > kMaxSource) return 0;
  const auto parsed = ChatTemplate::Parse({reinterpret_cast<const char*>(data), size}, kLimits);
  if (!parsed.ok()) return 0;
  const auto text = (*parsed)->Render(Conversation());
  if (text.ok() && text->size() > static_cast<size_t>(kLimits.max_output_bytes)) std::abort();
  return 0;
}
