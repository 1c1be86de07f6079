#include "services/gpu-worker/rpc/chat_prompt.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/json.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::worker {
namespace {

constexpr int kMaxMessages = 8192;
constexpr int kMaxTools = 512;
constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant",
                                                    "tool"};

absl::StatusOr<json::object> ParseObject(const std::string& text, const std::string& field) {
  auto value = ParseJson(text);
  if (!value.ok()) return Annotate(value.status(), field);
  if (!value->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": must be a JSON object"));
  }
  return std::move(value->as_object());
}

// Templates want the arguments as an object to print or to walk; what is no object stays the text
// that the model once wrote.
json::value ToolArguments(const std::string& text) {
  auto value = ParseJson(text);
  if (value.ok() && value->is_object()) return *std::move(value);
  return json::value(json::string(text));
}

json::object ToJson(const v1::ToolCall& call) {
  json::object function;
  function["name"] = call.name();
  function["arguments"] = ToolArguments(call.arguments_json());
  json::object object;
  if (!call.id().empty()) object["id"] = call.id();
  object["type"] = "function";
  object["function"] = std::move(function);
  return object;
}

absl::StatusOr<json::object> ToJson(const v1::ChatMessage& message, const std::string& field) {
  if (std::find(kRoles.begin(), kRoles.end(), message.role()) == kRoles.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".role: must be system, developer, user, assistant or tool"));
  }
  json::object object;
  object["role"] = message.role();
  object["content"] =
      message.has_content() ? json::value(json::string(message.content())) : json::value(nullptr);
  if (message.has_reasoning_content()) object["reasoning_content"] = message.reasoning_content();
  if (message.has_name()) object["name"] = message.name();
  if (message.has_tool_call_id()) object["tool_call_id"] = message.tool_call_id();
  if (message.tool_calls_size() > 0) {
    json::array calls;
    for (int i = 0; i < message.tool_calls_size(); ++i) {
      if (message.tool_calls(i).name().empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(field, ".tool_calls[", i, "].function.name: is missing"));
      }
      calls.push_back(ToJson(message.tool_calls(i)));
    }
    object["tool_calls"] = std::move(calls);
  }
  return object;
}

absl::Status CheckCounts(const v1::ChatPrompt& chat) {
  if (chat.messages_size() == 0) {
    return absl::InvalidArgumentError("messages: must have at least one message");
  }
  if (chat.messages_size() > kMaxMessages) {
    return absl::InvalidArgumentError(
        absl::StrCat("messages: has ", chat.messages_size(), " messages, at most ", kMaxMessages));
  }
  if (chat.tools_json_size() > kMaxTools) {
    return absl::InvalidArgumentError(
        absl::StrCat("tools: has ", chat.tools_json_size(), " tools, at most ", kMaxTools));
  }
  return absl::OkStatus();
}

absl::StatusOr<json::object> TemplateVariables(const v1::ChatPrompt& chat) {
  json::object variables;
  if (!chat.template_kwargs_json().empty()) {
    HEARTH_ASSIGN_OR_RETURN(variables,
                            ParseObject(chat.template_kwargs_json(), "chat_template_kwargs"));
  }
  json::array messages;
  for (int i = 0; i < chat.messages_size(); ++i) {
    HEARTH_ASSIGN_OR_RETURN(json::object message,
                            ToJson(chat.messages(i), absl::StrCat("messages[", i, "]")));
    messages.push_back(std::move(message));
  }
  json::array tools;
  for (int i = 0; i < chat.tools_json_size(); ++i) {
    HEARTH_ASSIGN_OR_RETURN(json::object tool,
                            ParseObject(chat.tools_json(i), absl::StrCat("tools[", i, "]")));
    tools.push_back(std::move(tool));
  }
  // After the client's own variables: these three are the request's fields.
  variables["messages"] = std::move(messages);
  variables.erase("tools");
  if (!tools.empty()) variables["tools"] = std::move(tools);
  variables["add_generation_prompt"] = chat.add_generation_prompt();
  return variables;
}

}  // namespace

absl::StatusOr<std::string> RenderChat(const ChatTemplate* chat_template,
                                       const v1::ChatPrompt& chat) {
  if (chat_template == nullptr) {
    return absl::FailedPreconditionError(
        "messages: this checkpoint has no chat template; use the completions API");
  }
  HEARTH_RETURN_IF_ERROR(CheckCounts(chat));
  HEARTH_ASSIGN_OR_RETURN(const json::object variables, TemplateVariables(chat));
  auto text = chat_template->Render(variables);
  if (!text.ok()) return Annotate(text.status(), "messages");
  return text;
}

}  // namespace hearth::worker
