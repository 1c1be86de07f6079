// POST /v1/chat/completions.
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "services/gateway/api/fields.h"
#include "services/gateway/api/request.h"

namespace hearth::gateway {
namespace {

// Tools are offered to the model or not; forcing a call needs constrained sampling, which this
// server does not do, so what asks for it is refused.
absl::StatusOr<bool> ToolsAreOffered(const json::object& body) {
  const json::value* tools = FindField(body, "tools");
  const bool has_tools = tools != nullptr && !tools->get_array().empty();
  if (!BoolOr(body, "parallel_tool_calls", true) && has_tools) {
    return absl::InvalidArgumentError(
        "parallel_tool_calls: false is not supported by this server, leave it out");
  }
  const json::value* choice = FindField(body, "tool_choice");
  if (choice == nullptr || *choice == "auto") return has_tools;
  if (*choice == "none") return false;
  return absl::InvalidArgumentError("tool_choice: this server supports \"auto\" and \"none\" only");
}

absl::Status CheckFormats(const json::object& body) {
  if (const json::value* format = FindField(body, "response_format")) {
    const json::object* object = format->if_object();
    const json::value* type = object == nullptr ? nullptr : FindField(*object, "type");
    if (type == nullptr || *type != "text") {
      return absl::InvalidArgumentError(
          "response_format: this server supports {\"type\": \"text\"} only");
    }
  }
  if (const json::value* modalities = FindField(body, "modalities")) {
    if (*modalities != json::array({"text"})) {
      return absl::InvalidArgumentError("modalities: this server supports [\"text\"] only");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadChatLogprobs(const json::object& body, Generation* generation,
                              v1::GenerateRequest* request) {
  generation->logprobs = BoolOr(body, "logprobs", false);
  const json::value* top = FindField(body, "top_logprobs");
  if (!generation->logprobs) {
    if (top == nullptr || top->get_int64() == 0) return absl::OkStatus();
    return absl::InvalidArgumentError("top_logprobs: needs \"logprobs\": true");
  }
  const int64_t n_top = top == nullptr ? 0 : top->get_int64();
  request->mutable_sampling()->set_logprobs(static_cast<int32_t>(n_top));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Generation> ParseChat(const json::object& body) {
  Generation generation;
  generation.is_chat = true;
  HEARTH_RETURN_IF_ERROR(CheckFormats(body));
  HEARTH_ASSIGN_OR_RETURN(generation.parse_tool_calls, ToolsAreOffered(body));
  v1::GenerateRequest request;
  HEARTH_RETURN_IF_ERROR(ReadChatPrompt(body, request.mutable_chat()));
  if (!generation.parse_tool_calls) request.mutable_chat()->clear_tools_json();
  HEARTH_RETURN_IF_ERROR(ReadGenerationFields(body, &generation, &request));
  if (const json::value* limit = FindField(body, "max_completion_tokens")) {
    if (request.has_max_tokens() && request.max_tokens() != limit->get_int64()) {
      return absl::InvalidArgumentError(
          "max_completion_tokens: differs from max_tokens, which means the same; send one");
    }
    request.set_max_tokens(static_cast<int32_t>(limit->get_int64()));
    generation.limit_name = "max_completion_tokens";
  }
  HEARTH_RETURN_IF_ERROR(ReadChatLogprobs(body, &generation, &request));
  AddChoices(body, request, &generation);
  return generation;
}

absl::StatusOr<v1::ApplyTemplateRequest> ParseApplyTemplate(const json::object& body) {
  v1::ApplyTemplateRequest request;
  HEARTH_RETURN_IF_ERROR(ReadChatPrompt(body, request.mutable_chat()));
  return request;
}

}  // namespace hearth::gateway
