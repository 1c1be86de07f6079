#include "services/gateway/api/request.h"

#include "absl/strings/str_cat.h"
#include "common/testing/status_matchers.h"
#include "services/gateway/api/error.h"
#include "services/gateway/api/testing.h"

namespace hearth::gateway {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::StartsWith;
using ::testing::UnorderedElementsAre;

template <typename Parse>
auto Read(Endpoint endpoint, const std::string& text, Parse parse)
    -> decltype(parse(json::object())) {
  HEARTH_ASSIGN_OR_RETURN(const json::value body, ParseJson(text));
  HEARTH_RETURN_IF_ERROR(CheckFields(body, endpoint));
  return parse(body.get_object());
}
// `more`: members beside the messages.
absl::StatusOr<Generation> Chat(
    const std::string& more,
    const std::string& messages = R"([{"role": "user", "content": "hi"}])") {
  return Read(kChat, absl::StrCat("{\"messages\": ", messages, more.empty() ? "" : ", ", more, "}"),
              ParseChat);
}
absl::StatusOr<Generation> Completion(const std::string& members) {
  return Read(kCompletion, absl::StrCat("{", members, "}"), ParseCompletion);
}
// What is blamed for these messages.
std::string ParamOf(const std::string& messages) {
  const auto generation = Chat("", messages);
  EXPECT_FALSE(generation.ok()) << messages;
  EXPECT_EQ(ToApiError(generation.status()).http_status, 400);
  return ToApiError(generation.status()).param;
}

TEST(ChatRequest, SamplingAndLimitsReachTheWorker) {
  ASSERT_OK_AND_ASSIGN(const Generation generation, Chat(R"(
      "model": "demo", "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125,
      "presence_penalty": 1, "frequency_penalty": -2, "repetition_penalty": 1.5, "seed": 9,
      "logit_bias": {"5": -100, "6": 1.5}, "max_tokens": 12, "stop": ["a", "b"],
      "stop_token_ids": [3], "ignore_eos": true, "return_token_ids": true, "logprobs": true,
      "top_logprobs": 4)"));
  EXPECT_EQ(generation.model, "demo");
  EXPECT_TRUE(generation.is_chat && generation.logprobs && generation.return_token_ids);
  ASSERT_EQ(generation.requests.size(), 1u);
  const v1::GenerateRequest& request = generation.requests[0];
  const v1::Sampling& sampling = request.sampling();
  EXPECT_EQ(sampling.temperature(), 0.5f);
  EXPECT_EQ(sampling.top_p(), 0.25f);
  EXPECT_EQ(sampling.top_k(), 7);
  EXPECT_EQ(sampling.min_p(), 0.125f);
  EXPECT_EQ(sampling.presence_penalty(), 1);
  EXPECT_EQ(sampling.frequency_penalty(), -2);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5f);
  EXPECT_EQ(sampling.seed(), 9u);
  EXPECT_EQ(sampling.logprobs(), 4);
  EXPECT_THAT(sampling.logit_bias(), UnorderedElementsAre(Pair(5, -100), Pair(6, 1.5)));
  EXPECT_EQ(request.max_tokens(), 12);
  EXPECT_THAT(request.stop(), ElementsAre("a", "b"));
  EXPECT_THAT(request.stop_token_ids(), ElementsAre(3));
  EXPECT_TRUE(request.ignore_eos() && request.return_token_ids());
}

TEST(ChatRequest, WhatIsNotSaidIsLeftToTheModel) {
  ASSERT_OK_AND_ASSIGN(const Generation generation, Chat(""));
  const v1::GenerateRequest& request = generation.requests[0];
  EXPECT_EQ(request.sampling().ByteSizeLong(), 0u);
  EXPECT_FALSE(request.has_max_tokens());
  EXPECT_TRUE(request.chat().add_generation_prompt());
  EXPECT_FALSE(generation.stream || generation.include_usage || generation.logprobs);
}

TEST(ChatRequest, NChoicesDifferInTheirSeedsOnly) {
  ASSERT_OK_AND_ASSIGN(const Generation generation, Chat(R"("n": 3, "seed": -1)"));
  ASSERT_EQ(generation.requests.size(), 3u);
  EXPECT_EQ(generation.requests[0].sampling().seed(), ~uint64_t{0});
  EXPECT_EQ(generation.requests[2].sampling().seed(), 1u);
  ASSERT_OK_AND_ASSIGN(const Generation random, Chat(R"("n": 2)"));
  EXPECT_FALSE(random.requests[1].sampling().has_seed());
}

TEST(ChatRequest, BothNamesOfTheLimitAreTaken) {
  EXPECT_EQ(Chat(R"("max_completion_tokens": 5)")->requests[0].max_tokens(), 5);
  EXPECT_EQ(Chat(R"("max_completion_tokens": 5)")->limit_name, "max_completion_tokens");
  EXPECT_EQ(Chat(R"("max_tokens": 5, "max_completion_tokens": 5)")->requests[0].max_tokens(), 5);
  EXPECT_THAT(Chat(R"("max_tokens": 4, "max_completion_tokens": 5)"),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("max_completion_tokens: ")));
}

TEST(ChatRequest, StreamOptionsNeedAStream) {
  EXPECT_TRUE(Chat(R"("stream": true, "stream_options": {"include_usage": true})")->include_usage);
  EXPECT_FALSE(Chat(R"("stream": true, "stream_options": {})")->include_usage);
  EXPECT_THAT(Chat(R"("stream_options": {"include_usage": true})"),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("stream_options: ")));
  EXPECT_THAT(
      Chat(R"("stream": true, "stream_options": {"include_usage": 1})"),
      IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("stream_options.include_usage: ")));
  EXPECT_THAT(Chat(R"("stream": true, "stream_options": {"usage": true})"),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("stream_options: ")));
}

TEST(ChatRequest, LogprobsNeedTheirSwitch) {
  EXPECT_THAT(Chat(R"("top_logprobs": 2)"),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("top_logprobs: ")));
  EXPECT_OK(Chat(R"("top_logprobs": 0)"));
  EXPECT_EQ(Chat(R"("logprobs": true)")->requests[0].sampling().logprobs(), 0);
  EXPECT_TRUE(Chat(R"("logprobs": true)")->requests[0].sampling().has_logprobs());
}

TEST(ChatRequest, StopsHaveASize) {
  EXPECT_THAT(Chat(R"("stop": "x")")->requests[0].stop(), ElementsAre("x"));
  for (const std::string& bad : {std::string("\"\""), std::string("[\"a\", \"\"]"),
                                 absl::StrCat("\"", std::string(1025, 'x'), "\"")}) {
    EXPECT_THAT(Chat(absl::StrCat("\"stop\": ", bad)),
                IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("stop: ")));
  }
}

TEST(ChatRequest, LogitBiasTakesTokenIdsAndBoundedNumbers) {
  for (const char* bad : {R"({"x": 1})", R"({"-1": 1})", R"({"1.5": 1})", R"({"": 1})",
                          R"({"2147483648": 1})", R"({"1": 100.1})", R"({"1": -101})",
                          R"({"1": "1"})", R"({"1": null})", R"({"1": 1e999})"}) {
    EXPECT_THAT(Chat(absl::StrCat("\"logit_bias\": ", bad)),
                IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("logit_bias: ")))
        << bad;
  }
}

TEST(ChatRequest, MessagesKeepEverythingThatTemplatesRead) {
  ASSERT_OK_AND_ASSIGN(const Generation generation, Chat("", R"([
      {"role": "system", "content": "s", "name": "n"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": null, "refusal": null, "reasoning_content": "r",
       "tool_calls": [{"id": "c1", "type": "function",
                       "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "42"}])"));
  const auto& messages = generation.requests[0].chat().messages();
  ASSERT_EQ(messages.size(), 4);
  EXPECT_EQ(messages[0].name(), "n");
  EXPECT_EQ(messages[1].content(), "ab");
  EXPECT_FALSE(messages[2].has_content());
  EXPECT_EQ(messages[2].reasoning_content(), "r");
  ASSERT_EQ(messages[2].tool_calls_size(), 1);
  EXPECT_EQ(messages[2].tool_calls(0).id(), "c1");
  EXPECT_EQ(messages[2].tool_calls(0).name(), "f");
  EXPECT_EQ(messages[2].tool_calls(0).arguments_json(), "{\"x\": 1}");
  EXPECT_EQ(messages[3].tool_call_id(), "c1");
}

TEST(ChatRequest, BrokenMessagesAreRefusedByTheirPlace) {
  EXPECT_EQ(ParamOf("[1]"), "messages[0]");
  EXPECT_EQ(ParamOf("[{}]"), "messages[0].role");
  EXPECT_EQ(ParamOf(R"([{"role": "king", "content": "x"}])"), "messages[0].role");
  EXPECT_EQ(ParamOf(R"([{"role": "user", "content": "x"}, {"role": "user"}])"),
            "messages[1].content");
  EXPECT_EQ(ParamOf(R"([{"role": "user", "content": 7}])"), "messages[0].content");
  EXPECT_EQ(ParamOf(R"([{"role": "user", "content": ["x"]}])"), "messages[0].content[0]");
  EXPECT_EQ(ParamOf(R"([{"role": "user", "content": [{"type": "image_url"}]}])"),
            "messages[0].content[0]");
  EXPECT_EQ(ParamOf(R"([{"role": "user", "content": [{"type": "text"}]}])"),
            "messages[0].content[0].text");
  EXPECT_EQ(ParamOf(R"([{"role": "user", "content": "x", "name": 1}])"), "messages[0].name");
  EXPECT_EQ(ParamOf(R"([{"role": "tool", "content": "x", "tool_call_id": 1}])"),
            "messages[0].tool_call_id");
  EXPECT_EQ(ParamOf(R"([{"role": "user", "content": "x", "tool_calls": []}])"),
            "messages[0].tool_calls");
  EXPECT_EQ(ParamOf(R"([{"role": "assistant", "tool_calls": [{}]}])"), "messages[0].tool_calls[0]");
  EXPECT_EQ(ParamOf(R"([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}])"),
            "messages[0].tool_calls[0].function.arguments");
}

TEST(ChatRequest, ToolsReachTheTemplateUnlessNoneIsChosen) {
  const std::string tools =
      R"("tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}])";
  ASSERT_OK_AND_ASSIGN(const Generation offered, Chat(tools));
  EXPECT_TRUE(offered.parse_tool_calls);
  EXPECT_THAT(
      offered.requests[0].chat().tools_json(),
      ElementsAre(R"({"type":"function","function":{"name":"f","parameters":{"b":1,"a":2}}})"))
      << "the keys keep their order";
  ASSERT_OK_AND_ASSIGN(const Generation none, Chat(tools + R"(, "tool_choice": "none")"));
  EXPECT_FALSE(none.parse_tool_calls);
  EXPECT_EQ(none.requests[0].chat().tools_json_size(), 0);
  for (const char* forced :
       {"\"required\"", R"({"type": "function", "function": {"name": "f"}})"}) {
    EXPECT_THAT(Chat(absl::StrCat(tools, ", \"tool_choice\": ", forced)),
                IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("tool_choice: ")));
  }
  EXPECT_THAT(Chat(tools + R"(, "parallel_tool_calls": false)"),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("parallel_tool_calls: ")));
  for (const char* bad :
       {"[1]", "[{}]", R"([{"type": "web"}])", R"([{"type": "function", "function": {}}])"}) {
    EXPECT_THAT(Chat(absl::StrCat("\"tools\": ", bad)),
                IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("tools[0]")));
  }
}

TEST(ChatRequest, HugeToolsAndVariablesAreRefused) {
  const std::string big(70'000, 'x');
  EXPECT_THAT(Chat(absl::StrCat(
                  R"("tools": [{"type": "function", "function": {"name": "f", "description": ")",
                  big, "\"}}]")),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("tools[0]: has ")));
  EXPECT_THAT(Chat(absl::StrCat(R"("chat_template_kwargs": {"x": ")", big, "\"}")),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("chat_template_kwargs: ")));
}

TEST(CompletionRequest, PromptsComeInFourShapes) {
  EXPECT_EQ(Completion(R"("prompt": "a")")->requests[0].text(), "a");
  EXPECT_THAT(Completion(R"("prompt": [4, 5])")->requests[0].tokens().ids(), ElementsAre(4, 5));
  ASSERT_OK_AND_ASSIGN(const Generation texts, Completion(R"("prompt": ["a", "b"], "n": 2)"));
  ASSERT_EQ(texts.requests.size(), 4u);
  EXPECT_EQ(texts.requests[1].text(), "a");
  EXPECT_EQ(texts.requests[2].text(), "b");
  ASSERT_OK_AND_ASSIGN(const Generation ids, Completion(R"("prompt": [[1, 2], [3]])"));
  ASSERT_EQ(ids.requests.size(), 2u);
  EXPECT_THAT(ids.requests[1].tokens().ids(), ElementsAre(3));
}

TEST(CompletionRequest, BrokenPromptsAreRefused) {
  for (const char* bad : {"[1, \"a\"]", "[1, -1]", "[1.5]", "[[1], 2]", "[[\"a\"]]", "[null]",
                          "[2147483648]", "[[[1]]]", "[]"}) {
    EXPECT_THAT(Completion(absl::StrCat("\"prompt\": ", bad)),
                IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("prompt: ")))
        << bad;
  }
  std::string many = "\"a\"";
  for (int i = 0; i < 32; ++i) many += ", \"a\"";
  EXPECT_THAT(Completion(absl::StrCat("\"prompt\": [", many, "]")),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("33 prompts")));
}

TEST(CompletionRequest, PromptsTimesChoicesAreBounded) {
  std::string prompts = "\"a\"";
  for (int i = 0; i < 8; ++i) prompts += ", \"a\"";
  EXPECT_THAT(Completion(absl::StrCat("\"n\": 8, \"prompt\": [", prompts, "]")),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("n: with 9 prompts")));
}

TEST(CompletionRequest, ItsOwnDefaultsHold) {
  ASSERT_OK_AND_ASSIGN(const Generation generation, Completion(R"("prompt": "a")"));
  EXPECT_EQ(generation.requests[0].max_tokens(), 16);
  EXPECT_FALSE(generation.requests[0].echo());
  EXPECT_FALSE(generation.is_chat);
  EXPECT_TRUE(Completion(R"("prompt": "a", "echo": true)")->requests[0].echo());
  EXPECT_EQ(Completion(R"("prompt": "a", "logprobs": 3)")->requests[0].sampling().logprobs(), 3);
  EXPECT_THAT(Completion(R"("prompt": "a", "logprobs": 3, "echo": true)"),
              IsStatus(absl::StatusCode::kInvalidArgument, StartsWith("logprobs: ")));
}

TEST(HelperRequests, AreReadAsLlamaServersClientsWriteThem) {
  const auto tokenize =
      Read(kTokenize, R"({"content": "a", "parse_special": false})", ParseTokenize);
  EXPECT_EQ(tokenize->text(), "a");
  EXPECT_FALSE(tokenize->parse_special());
  EXPECT_TRUE(Read(kTokenize, R"({"content": ""})", ParseTokenize)->parse_special());
  EXPECT_THAT(Read(kDetokenize, R"({"tokens": [1, 0]})", ParseDetokenize)->ids(),
              ElementsAre(1, 0));
  const auto chat = Read(kApplyTemplate,
                         R"({"messages": [{"role": "user", "content": "a"}],
                             "add_generation_prompt": false, "chat_template_kwargs": {"x": 1}})",
                         ParseApplyTemplate);
  EXPECT_FALSE(chat->chat().add_generation_prompt());
  EXPECT_EQ(chat->chat().template_kwargs_json(), R"({"x":1})");
}

}  // namespace
}  // namespace hearth::gateway
