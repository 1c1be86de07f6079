// From the JSON of a request to the messages of proto/hearth/v1/inference.proto.
//
// All functions take a body that CheckFields has accepted and return InvalidArgument "field:
// reason" for what the table can't say.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/json.h"
#include "hearth/v1/inference.pb.h"

namespace hearth::gateway {

// A chat or completion request: one GenerateRequest for each choice of the answer.
struct Generation {
  bool is_chat = false;
  bool stream = false;
  bool include_usage = false;  // a last chunk with the usage, when streaming
  bool logprobs = false;
  bool return_token_ids = false;
  bool parse_tool_calls = false;          // tools were offered
  int n = 1;                              // choices a prompt
  std::string limit_name = "max_tokens";  // under which the client sent it
  std::string model;                      // as asked for; empty: any
  std::vector<v1::GenerateRequest> requests;
};

absl::StatusOr<Generation> ParseChat(const json::object& body);
absl::StatusOr<Generation> ParseCompletion(const json::object& body);

absl::StatusOr<v1::TokenizeRequest> ParseTokenize(const json::object& body);
absl::StatusOr<v1::DetokenizeRequest> ParseDetokenize(const json::object& body);
absl::StatusOr<v1::ApplyTemplateRequest> ParseApplyTemplate(const json::object& body);

// Parts of them.
absl::Status ReadChatPrompt(const json::object& body, v1::ChatPrompt* prompt);
absl::Status ReadMessage(const json::value& value, const std::string& where, v1::ChatMessage* out);
// What chat and completion share: sampling, limits, stops, streaming.
absl::Status ReadGenerationFields(const json::object& body, Generation* generation,
                                  v1::GenerateRequest* request);
// `n` copies; each has a seed of its own where the request named one.
void AddChoices(const json::object& body, const v1::GenerateRequest& request,
                Generation* generation);

// Typed reads of what CheckFields has checked.
bool BoolOr(const json::object& body, std::string_view name, bool otherwise);
std::string StringOr(const json::object& body, std::string_view name, std::string_view otherwise);

}  // namespace hearth::gateway
