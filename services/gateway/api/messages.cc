// Messages, tools and template variables of a chat.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "services/gateway/api/fields.h"
#include "services/gateway/api/request.h"

namespace hearth::gateway {
namespace {

constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant",
                                                    "tool"};
constexpr size_t kMaxToolBytes = 64 << 10;
constexpr size_t kMaxKwargsBytes = 64 << 10;
constexpr size_t kMaxToolCalls = 128;

absl::Status Bad(const std::string& where, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", ToAbsl(what)));
}

std::string Text(const json::value& string) {
  return {string.get_string().data(), string.get_string().size()};
}

// A member that is a string where it is there; nullptr where it is absent or null.
absl::StatusOr<const json::value*> OptionalString(const json::object& object, std::string_view name,
                                                  const std::string& where) {
  const json::value* value = FindField(object, name);
  if (value == nullptr || value->is_string()) return value;
  return Bad(absl::StrCat(where, ".", ToAbsl(name)), "must be a string");
}

absl::StatusOr<std::string> RequiredString(const json::object& object, std::string_view name,
                                           const std::string& where) {
  HEARTH_ASSIGN_OR_RETURN(const json::value* value, OptionalString(object, name, where));
  if (value != nullptr) return Text(*value);
  return Bad(absl::StrCat(where, ".", ToAbsl(name)), "is missing, must be a string");
}

// A string, or a list of {"type": "text", "text": ...} parts, whose texts are joined.
absl::StatusOr<std::string> ReadContent(const json::value& content, const std::string& where) {
  if (content.is_string()) return Text(content);
  const json::array* parts = content.if_array();
  if (parts == nullptr) return Bad(where, "must be a string or a list of parts");
  std::string text;
  for (size_t i = 0; i < parts->size(); ++i) {
    const std::string part_where = absl::StrCat(where, "[", i, "]");
    const json::object* part = (*parts)[i].if_object();
    const json::value* type = part == nullptr ? nullptr : FindField(*part, "type");
    if (type == nullptr || *type != "text") {
      return Bad(part_where,
                 "must be {\"type\": \"text\", \"text\": ...}: this model reads text only");
    }
    HEARTH_ASSIGN_OR_RETURN(const std::string piece, RequiredString(*part, "text", part_where));
    text += piece;
  }
  return text;
}

absl::Status ReadToolCall(const json::value& value, const std::string& where, v1::ToolCall* out) {
  const json::object* call = value.if_object();
  const json::value* function = call == nullptr ? nullptr : FindField(*call, "function");
  if (function == nullptr || !function->is_object()) {
    return Bad(where, "must be {\"id\", \"type\": \"function\", \"function\": {...}}");
  }
  const std::string function_where = absl::StrCat(where, ".function");
  const json::object& named = function->get_object();
  HEARTH_ASSIGN_OR_RETURN(const json::value* id, OptionalString(*call, "id", where));
  if (id != nullptr) out->set_id(Text(*id));
  HEARTH_ASSIGN_OR_RETURN(*out->mutable_name(), RequiredString(named, "name", function_where));
  HEARTH_ASSIGN_OR_RETURN(*out->mutable_arguments_json(),
                          RequiredString(named, "arguments", function_where));
  return absl::OkStatus();
}

absl::Status ReadToolCalls(const json::value& value, const std::string& where,
                           v1::ChatMessage* out) {
  const json::array* calls = value.if_array();
  if (calls == nullptr || calls->size() > kMaxToolCalls) {
    return Bad(where, absl::StrCat("must be a list of at most ", kMaxToolCalls, " calls"));
  }
  for (size_t i = 0; i < calls->size(); ++i) {
    HEARTH_RETURN_IF_ERROR(
        ReadToolCall((*calls)[i], absl::StrCat(where, "[", i, "]"), out->add_tool_calls()));
  }
  return absl::OkStatus();
}

absl::Status ReadTools(const json::object& body, v1::ChatPrompt* prompt) {
  const json::value* tools = FindField(body, "tools");
  if (tools == nullptr) return absl::OkStatus();
  for (size_t i = 0; i < tools->get_array().size(); ++i) {
    const json::value& tool = tools->get_array()[i];
    const std::string where = absl::StrCat("tools[", i, "]");
    const json::object* object = tool.if_object();
    const json::value* type = object == nullptr ? nullptr : FindField(*object, "type");
    const json::value* function = object == nullptr ? nullptr : FindField(*object, "function");
    if (type == nullptr || *type != "function" || function == nullptr || !function->is_object()) {
      return Bad(where, "must be {\"type\": \"function\", \"function\": {...}}");
    }
    HEARTH_RETURN_IF_ERROR(
        RequiredString(function->get_object(), "name", absl::StrCat(where, ".function")).status());
    std::string text = SerializeJson(tool);
    if (text.size() > kMaxToolBytes) {
      return Bad(where, absl::StrCat("has ", text.size(), " bytes, at most ", kMaxToolBytes));
    }
    prompt->add_tools_json(std::move(text));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadMessage(const json::value& value, const std::string& where, v1::ChatMessage* out) {
  const json::object* message = value.if_object();
  if (message == nullptr) return Bad(where, "must be an object with role and content");
  HEARTH_ASSIGN_OR_RETURN(*out->mutable_role(), RequiredString(*message, "role", where));
  if (std::ranges::find(kRoles, out->role()) == kRoles.end()) {
    return Bad(absl::StrCat(where, ".role"), "must be system, developer, user, assistant or tool");
  }
  if (const json::value* calls = FindField(*message, "tool_calls")) {
    if (out->role() != "assistant") {
      return Bad(absl::StrCat(where, ".tool_calls"), "belongs to messages of the assistant only");
    }
    HEARTH_RETURN_IF_ERROR(ReadToolCalls(*calls, absl::StrCat(where, ".tool_calls"), out));
  }
  const std::string content_where = absl::StrCat(where, ".content");
  if (const json::value* content = FindField(*message, "content")) {
    HEARTH_ASSIGN_OR_RETURN(*out->mutable_content(), ReadContent(*content, content_where));
  } else if (out->tool_calls().empty()) {
    return Bad(content_where, "is missing");
  }
  HEARTH_ASSIGN_OR_RETURN(const json::value* name, OptionalString(*message, "name", where));
  if (name != nullptr) out->set_name(Text(*name));
  HEARTH_ASSIGN_OR_RETURN(const json::value* id, OptionalString(*message, "tool_call_id", where));
  if (id != nullptr) out->set_tool_call_id(Text(*id));
  HEARTH_ASSIGN_OR_RETURN(const json::value* reasoning,
                          OptionalString(*message, "reasoning_content", where));
  if (reasoning != nullptr) out->set_reasoning_content(Text(*reasoning));
  return absl::OkStatus();
}

absl::Status ReadChatPrompt(const json::object& body, v1::ChatPrompt* prompt) {
  const json::array& messages = FindField(body, "messages")->get_array();
  for (size_t i = 0; i < messages.size(); ++i) {
    HEARTH_RETURN_IF_ERROR(
        ReadMessage(messages[i], absl::StrCat("messages[", i, "]"), prompt->add_messages()));
  }
  HEARTH_RETURN_IF_ERROR(ReadTools(body, prompt));
  prompt->set_add_generation_prompt(BoolOr(body, "add_generation_prompt", true));
  if (const json::value* kwargs = FindField(body, "chat_template_kwargs")) {
    std::string text = SerializeJson(*kwargs);
    if (text.size() > kMaxKwargsBytes) {
      return Bad("chat_template_kwargs",
                 absl::StrCat("has ", text.size(), " bytes, at most ", kMaxKwargsBytes));
    }
    prompt->set_template_kwargs_json(std::move(text));
  }
  return absl::OkStatus();
}

}  // namespace hearth::gateway
