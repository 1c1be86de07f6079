// The answers' shapes, field by field as OpenAI's API has them.
#include "services/gateway/api/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "services/gateway/api/sse.h"

namespace hearth::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

json::value Json(std::string_view text) { return *ParseJson(text); }

// The data of each event; fails on anything else between them.
std::vector<std::string> Events(std::string_view stream) {
  std::vector<std::string> events;
  while (!stream.empty()) {
    const size_t end = stream.find("\n\n");
    EXPECT_TRUE(stream.starts_with("data: ") && end != std::string_view::npos) << stream;
    if (end == std::string_view::npos) break;
    events.emplace_back(stream.substr(6, end - 6));
    stream.remove_prefix(end + 2);
  }
  return events;
}

Generation Make(bool is_chat, bool stream, int n = 1) {
  Generation generation;
  generation.is_chat = is_chat;
  generation.stream = stream;
  generation.n = n;
  generation.requests.resize(static_cast<size_t>(n));
  return generation;
}
const AnswerInfo kChatInfo = {.id = "chatcmpl-7", .created = 99, .model = "demo"};
const AnswerInfo kTextInfo = {.id = "cmpl-7", .created = 99, .model = "demo"};

v1::Delta Text(const std::string& text) {
  v1::Delta delta;
  delta.set_text(text);
  return delta;
}
v1::Finish Finished(v1::FinishReason reason, int prompt, int completion) {
  v1::Finish finish;
  finish.set_reason(reason);
  finish.set_prompt_tokens(prompt);
  finish.set_completion_tokens(completion);
  return finish;
}
v1::TokenLogprob Logprob(int id, const std::string& bytes, float logprob) {
  v1::TokenLogprob token;
  token.set_id(id);
  token.set_token(bytes);
  token.set_logprob(logprob);
  return token;
}
// All events of an answer of these texts, which ends by itself.
std::string Streamed(const Generation& generation, const AnswerInfo& info,
                     const std::vector<std::string>& texts, bool opens_reasoning = false) {
  const auto answer = Answer::Make(generation, info);
  std::string out;
  answer->Start(&out);
  v1::Started started;
  started.set_opens_reasoning(opens_reasoning);
  answer->OnStarted(0, started);
  for (const std::string& text : texts) answer->OnDelta(0, Text(text), &out);
  answer->OnFinish(0, Finished(v1::FINISH_REASON_STOP, 3, 2), &out);
  answer->End(&out);
  return out;
}
json::object Whole(const Generation& generation, const AnswerInfo& info, const std::string& text,
                   v1::FinishReason reason = v1::FINISH_REASON_STOP, bool opens_reasoning = false) {
  const auto answer = Answer::Make(generation, info);
  std::string out;
  answer->Start(&out);
  v1::Started started;
  started.set_opens_reasoning(opens_reasoning);
  answer->OnStarted(0, started);
  answer->OnDelta(0, Text(text), &out);
  answer->OnFinish(0, Finished(reason, 3, 2), &out);
  answer->End(&out);
  EXPECT_EQ(out, "");
  return Json(answer->Body()).get_object();
}
// The deltas of a chat's stream joined as clients join them: {"content", "reasoning_content"}.
json::object Joined(const std::vector<std::string>& events) {
  std::string content, reasoning;
  json::array calls;
  json::value finish;
  for (const std::string& event : events) {
    if (event == "[DONE]") continue;
    const json::value chunk = Json(event);
    const json::object& choice = chunk.at("choices").at(0).get_object();
    const json::object& delta = choice.at("delta").get_object();
    if (delta.contains("content")) content += delta.at("content").get_string().c_str();
    if (delta.contains("reasoning_content")) {
      reasoning += delta.at("reasoning_content").get_string().c_str();
    }
    if (delta.contains("tool_calls")) {
      for (const json::value& call : delta.at("tool_calls").get_array()) calls.push_back(call);
    }
    if (!choice.at("finish_reason").is_null()) finish = choice.at("finish_reason");
  }
  return {{"content", content}, {"reasoning", reasoning}, {"calls", calls}, {"finish", finish}};
}

TEST(ChatAnswer, TheWholeHasOpenAisFields) {
  EXPECT_EQ(Whole(Make(true, false), kChatInfo, "Hi \"you\"", v1::FINISH_REASON_LENGTH),
            Json(R"({"id": "chatcmpl-7", "object": "chat.completion", "created": 99,
                     "model": "demo",
                     "choices": [{"index": 0,
                                  "message": {"role": "assistant", "content": "Hi \"you\"",
                                              "refusal": null},
                                  "logprobs": null, "finish_reason": "length"}],
                     "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                               "prompt_tokens_details": {"cached_tokens": 0}}})")
                .get_object());
}

TEST(ChatAnswer, TheStreamHasARoleThenTheTextThenAReason) {
  const auto events = Events(Streamed(Make(true, true), kChatInfo, {"Hel", "", "lo\n\n"}));
  ASSERT_EQ(events.size(), 5u) << "an empty delta says nothing";
  EXPECT_EQ(Json(events[0]),
            Json(R"({"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 99,
                     "model": "demo", "choices": [{"index": 0,
                       "delta": {"role": "assistant", "content": ""}, "logprobs": null,
                       "finish_reason": null}]})"));
  EXPECT_EQ(Json(events[1]).at("choices"),
            Json(R"([{"index": 0, "delta": {"content": "Hel"}, "logprobs": null,
                      "finish_reason": null}])"));
  EXPECT_EQ(Json(events[2]).at("choices").at(0).at("delta"), Json(R"({"content": "lo\n\n"})"));
  EXPECT_EQ(Json(events[3]).at("choices"),
            Json(R"([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}])"));
  EXPECT_EQ(events[4], "[DONE]");
}

TEST(ChatAnswer, UsageComesInAChunkOfItsOwnWhereAskedFor) {
  Generation generation = Make(true, true);
  generation.include_usage = true;
  const auto events = Events(Streamed(generation, kChatInfo, {"a"}));
  ASSERT_EQ(events.size(), 5u);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(Json(events[i]).at("usage").is_null());
  const json::value last = Json(events[3]);
  EXPECT_THAT(last.at("choices").get_array(), IsEmpty());
  EXPECT_EQ(last.at("usage").at("total_tokens"), 5);
  EXPECT_EQ(events[4], "[DONE]");
}

TEST(ChatAnswer, SeveralChoicesShareAPromptsUsage) {
  const Generation generation = Make(true, false, 2);
  const auto answer = Answer::Make(generation, kChatInfo);
  std::string out;
  answer->OnDelta(1, Text("b"), &out);
  answer->OnDelta(0, Text("a"), &out);
  answer->OnFinish(1, Finished(v1::FINISH_REASON_LENGTH, 3, 4), &out);
  answer->OnFinish(0, Finished(v1::FINISH_REASON_STOP, 3, 1), &out);
  const json::value whole = Json(answer->Body());
  EXPECT_EQ(whole.at("choices").at(0).at("message").at("content"), "a");
  EXPECT_EQ(whole.at("choices").at(1).at("index"), 1);
  EXPECT_EQ(whole.at("choices").at(1).at("finish_reason"), "length");
  EXPECT_EQ(whole.at("usage").at("prompt_tokens"), 3);
  EXPECT_EQ(whole.at("usage").at("completion_tokens"), 5);
}

TEST(ChatAnswer, LogprobsGiveEachTokensBytesAndItsRivals) {
  for (const bool stream : {false, true}) {
    Generation generation = Make(true, stream);
    generation.logprobs = true;
    generation.return_token_ids = true;
    const auto answer = Answer::Make(generation, kChatInfo);
    v1::Delta delta = Text("\xC3\xA9");
    delta.add_token_ids(5);
    *delta.add_logprobs() = Logprob(5, "\xC3", -0.5f);
    *delta.mutable_logprobs(0)->add_top() = Logprob(5, "\xC3", -0.5f);
    *delta.mutable_logprobs(0)->add_top() =
        Logprob(6, "b", -std::numeric_limits<float>::infinity());
    std::string out;
    answer->OnDelta(0, delta, &out);
    answer->OnFinish(0, Finished(v1::FINISH_REASON_STOP, 1, 1), &out);
    const json::value choice = stream ? Json(Events(out)[0]).at("choices").at(0)
                                      : Json(answer->Body()).at("choices").at(0);
    EXPECT_EQ(
        choice.at("logprobs"),
        Json("{\"content\": [{\"token\": \"\xEF\xBF\xBD\", \"logprob\": -0.5, \"bytes\": [195],"
             "\"top_logprobs\": [{\"token\": \"\xEF\xBF\xBD\", \"logprob\": -0.5, \"bytes\": "
             "[195]}, {\"token\": \"b\", \"logprob\": -9999.0, \"bytes\": [98]}]}],"
             "\"refusal\": null}"));
    EXPECT_EQ(choice.at("token_ids"), Json("[5]"));
  }
}

constexpr char kCall[] =
    "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, \"</tool_call>\"]}}\n</tool_call>";

TEST(ChatAnswer, ReasoningAndToolCallsAreTakenOutOfTheText) {
  Generation generation = Make(true, false);
  generation.parse_tool_calls = true;
  const json::object whole =
      Whole(generation, kChatInfo,
            absl::StrCat("<think>\nhm\n</think>\n\n", kCall, "\n<tool_call>\n{\"name\": \"g\", ",
                         "\"arguments\": {}}\n</tool_call>"));
  const json::value& choice = whole.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_EQ(choice.at("message").at("reasoning_content"), "hm");
  EXPECT_TRUE(choice.at("message").at("content").is_null());
  EXPECT_EQ(choice.at("message").at("tool_calls"),
            Json(R"([{"id": "call_7_0_0", "type": "function", "function":
                      {"name": "f", "arguments": "{\"x\": [1, \"</tool_call>\"]}"}},
                     {"id": "call_7_0_1", "type": "function", "function":
                      {"name": "g", "arguments": "{}"}}])"));
}

TEST(ChatAnswer, AStreamSaysTheSameHoweverItIsCut) {
  Generation generation = Make(true, true);
  generation.parse_tool_calls = true;
  const std::string text = absl::StrCat("<think>\nhm\n</think>\n\nLook:\n", kCall);
  const json::object whole = Joined(Events(Streamed(generation, kChatInfo, {text})));
  EXPECT_EQ(whole.at("content"), "Look:");
  EXPECT_EQ(whole.at("reasoning"), "hm");
  EXPECT_EQ(whole.at("finish"), "tool_calls");
  ASSERT_EQ(whole.at("calls").get_array().size(), 1u);
  EXPECT_EQ(whole.at("calls").at(0).at("index"), 0);
  EXPECT_EQ(whole.at("calls").at(0).at("function").at("name"), "f");
  for (const size_t step : {1, 2, 7}) {
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size(); at += step) pieces.push_back(text.substr(at, step));
    EXPECT_EQ(Joined(Events(Streamed(generation, kChatInfo, pieces))), whole) << step;
  }
}

TEST(ChatAnswer, CallsAreTextWhereNoToolsWereOffered) {
  const json::object whole = Whole(Make(true, false), kChatInfo, kCall);
  EXPECT_EQ(whole.at("choices").at(0).at("message").at("content"), kCall);
  EXPECT_EQ(whole.at("choices").at(0).at("finish_reason"), "stop");
}

TEST(ChatAnswer, APromptThatEndsInTheReasoningBeginsTheAnswerThere) {
  const json::object whole = Whole(Make(true, false), kChatInfo, "hm\n</think>\n\nYes.",
                                   v1::FINISH_REASON_STOP, /*opens_reasoning=*/true);
  EXPECT_EQ(whole.at("choices").at(0).at("message").at("reasoning_content"), "hm");
  EXPECT_EQ(whole.at("choices").at(0).at("message").at("content"), "Yes.");
  const json::object streamed =
      Joined(Events(Streamed(Make(true, true), kChatInfo, {"h", "m\n</thi", "nk>\n\nYes."}, true)));
  EXPECT_EQ(streamed.at("reasoning"), "hm");
  EXPECT_EQ(streamed.at("content"), "Yes.");
}

TEST(ChatAnswer, WhatTheParserHeldBackComesWithTheEnd) {
  const json::object streamed = Joined(Events(Streamed(Make(true, true), kChatInfo, {"<thin"})));
  EXPECT_EQ(streamed.at("content"), "<thin");
}

TEST(CompletionAnswer, TheWholeHasOpenAisFields) {
  EXPECT_EQ(Whole(Make(false, false), kTextInfo, "<think>a"),
            Json(R"({"id": "cmpl-7", "object": "text_completion", "created": 99, "model": "demo",
                     "choices": [{"index": 0, "text": "<think>a", "logprobs": null,
                                  "finish_reason": "stop"}],
                     "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                               "prompt_tokens_details": {"cached_tokens": 0}}})")
                .get_object());
}

TEST(CompletionAnswer, TheStreamHasTheTextThenAReason) {
  const auto events = Events(Streamed(Make(false, true), kTextInfo, {"Hel", "lo"}));
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(Json(events[0]),
            Json(R"({"id": "cmpl-7", "object": "text_completion", "created": 99, "model": "demo",
                     "choices": [{"index": 0, "text": "Hel", "logprobs": null,
                                  "finish_reason": null}]})"));
  EXPECT_EQ(Json(events[2]).at("choices"),
            Json(R"([{"index": 0, "text": "", "logprobs": null, "finish_reason": "stop"}])"));
  EXPECT_EQ(events[3], "[DONE]");
}

TEST(CompletionAnswer, LogprobsOffsetsCountCharacters) {
  Generation generation = Make(false, true);
  generation.logprobs = true;
  const auto answer = Answer::Make(generation, kTextInfo);
  std::string out;
  v1::Delta first = Text("\xC3\xA9");  // of two tokens
  *first.add_logprobs() = Logprob(1, "\xC3", -1);
  *first.add_logprobs() = Logprob(2, "\xA9", -2);
  answer->OnDelta(0, first, &out);
  v1::Delta second = Text("xy");
  *second.add_logprobs() = Logprob(3, "xy", -0.25f);
  *second.mutable_logprobs(0)->add_top() = Logprob(4, "z", -3);
  answer->OnDelta(0, second, &out);
  const auto events = Events(out);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(Json(events[0]).at("choices").at(0).at("logprobs").at("text_offset"), Json("[0, 1]"));
  EXPECT_EQ(Json(events[1]).at("choices").at(0).at("logprobs"),
            Json(R"({"tokens": ["xy"], "token_logprobs": [-0.25], "top_logprobs": [{"z": -3.0}],
                     "text_offset": [1]})"));
}

TEST(CompletionAnswer, EachPromptCountsOnceInTheUsage) {
  Generation generation = Make(false, false, 2);
  generation.requests.resize(4);  // two prompts, two choices each
  const auto answer = Answer::Make(generation, kTextInfo);
  std::string out;
  for (int i = 0; i < 4; ++i) {
    answer->OnFinish(i, Finished(v1::FINISH_REASON_STOP, i < 2 ? 10 : 20, 1), &out);
  }
  EXPECT_EQ(Json(answer->Body()).at("usage").at("prompt_tokens"), 30);
  EXPECT_EQ(answer->completion_tokens(), 4);
}

TEST(Events, DataIsOneLineWhateverTheTextIs) {
  const auto events = Events(Streamed(Make(true, true), kChatInfo, {"a\r\nb\n\ndata: x\n\n"}));
  for (const std::string& event : events) {
    EXPECT_EQ(event.find('\n'), std::string::npos);
    EXPECT_EQ(event.find('\r'), std::string::npos);
  }
  EXPECT_THAT(Events("data: a\n\ndata: b\n\n"), ElementsAre("a", "b"));
}

}  // namespace
}  // namespace hearth::gateway
