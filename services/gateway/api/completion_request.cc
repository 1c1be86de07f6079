// POST /v1/completions, /tokenize and /detokenize.
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/gateway/api/fields.h"
#include "services/gateway/api/request.h"

namespace hearth::gateway {
namespace {

constexpr size_t kMaxPrompts = 32;
constexpr size_t kMaxChoices = 64;

absl::Status BadPrompt() {
  return absl::InvalidArgumentError(
      "prompt: must be a string, a list of strings, a list of token ids or a list of such lists");
}

absl::Status AddIds(const json::array& ids, v1::GenerateRequest* request) {
  request->mutable_tokens()->clear_ids();
  for (const json::value& id : ids) {
    const int64_t* n = id.if_int64();
    if (n == nullptr || *n < 0 || *n > kMaxInt32) return BadPrompt();
    request->mutable_tokens()->add_ids(static_cast<int32_t>(*n));
  }
  return absl::OkStatus();
}

absl::Status SetPrompt(const json::value& prompt, v1::GenerateRequest* request) {
  if (prompt.is_string()) {
    request->set_text(std::string(prompt.get_string().data(), prompt.get_string().size()));
    return absl::OkStatus();
  }
  return prompt.is_array() ? AddIds(prompt.get_array(), request) : BadPrompt();
}

// One string or list of ids is one prompt; a list of strings or of lists is several.
absl::StatusOr<std::vector<const json::value*>> Prompts(const json::value& prompt) {
  const json::array* list = prompt.if_array();
  if (list == nullptr || (!list->empty() && list->front().is_number())) {
    return std::vector<const json::value*>{&prompt};
  }
  if (list->empty() || list->size() > kMaxPrompts) {
    return absl::InvalidArgumentError(absl::StrCat("prompt: is a list of ", list->size(),
                                                   " prompts, must have 1 to ", kMaxPrompts));
  }
  std::vector<const json::value*> prompts;
  for (const json::value& one : *list) prompts.push_back(&one);
  return prompts;
}

}  // namespace

absl::StatusOr<Generation> ParseCompletion(const json::object& body) {
  Generation generation;
  v1::GenerateRequest request;
  HEARTH_RETURN_IF_ERROR(ReadGenerationFields(body, &generation, &request));
  // The completions API's own default, older than "as many as fit".
  if (!request.has_max_tokens()) request.set_max_tokens(16);
  request.set_echo(BoolOr(body, "echo", false));
  if (const json::value* n_top = FindField(body, "logprobs")) {
    generation.logprobs = true;
    request.mutable_sampling()->set_logprobs(static_cast<int32_t>(n_top->get_int64()));
    if (request.echo()) {
      return absl::InvalidArgumentError(
          "logprobs: are not computed for the prompt, so not together with echo");
    }
  }
  HEARTH_ASSIGN_OR_RETURN(const auto prompts, Prompts(*FindField(body, "prompt")));
  for (const json::value* prompt : prompts) {
    HEARTH_RETURN_IF_ERROR(SetPrompt(*prompt, &request));
    AddChoices(body, request, &generation);
  }
  if (generation.requests.size() > kMaxChoices) {
    return absl::InvalidArgumentError(absl::StrCat("n: with ", prompts.size(), " prompts makes ",
                                                   generation.requests.size(), " answers, at most ",
                                                   kMaxChoices));
  }
  return generation;
}

absl::StatusOr<v1::TokenizeRequest> ParseTokenize(const json::object& body) {
  v1::TokenizeRequest request;
  request.set_text(StringOr(body, "content", ""));
  request.set_parse_special(BoolOr(body, "parse_special", true));
  return request;
}

absl::StatusOr<v1::DetokenizeRequest> ParseDetokenize(const json::object& body) {
  v1::DetokenizeRequest request;
  for (const json::value& id : FindField(body, "tokens")->get_array()) {
    request.add_ids(static_cast<int32_t>(id.get_int64()));
  }
  return request;
}

}  // namespace hearth::gateway
