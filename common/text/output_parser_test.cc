// Answers must come apart into reasoning, content and calls the same way however they are cut, and
// nothing that was said may be lost.
#include "common/text/output_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/testing/source_dir.h"
#include "common/text/chat_template.h"

namespace hearth {
namespace {

using Kind = OutputPiece::Kind;
using Pieces = std::vector<OutputPiece>;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

OutputPiece Reasoning(std::string text) { return {Kind::kReasoning, std::move(text), "", ""}; }
OutputPiece Content(std::string text) { return {Kind::kContent, std::move(text), "", ""}; }
OutputPiece Call(std::string name, std::string arguments) {
  return {Kind::kToolCall, "", std::move(name), std::move(arguments)};
}

// Neighbours of one kind joined, as a client sees them in the end.
void Join(Pieces& all, const Pieces& more) {
  for (const OutputPiece& piece : more) {
    EXPECT_EQ(piece.text.empty(), piece.kind == Kind::kToolCall);
    if (!all.empty() && piece.kind != Kind::kToolCall && all.back().kind == piece.kind) {
      all.back().text += piece.text;
    } else {
      all.push_back(piece);
    }
  }
}

template <typename NextSize>
Pieces ParseCut(std::string_view text, const OutputOptions& options, NextSize next_size) {
  OutputParser parser(options);
  Pieces all;
  while (!text.empty()) {
    const size_t n = std::min<size_t>(text.size(), next_size());
    Join(all, parser.Push(text.substr(0, n)));
    text.remove_prefix(n);
  }
  Join(all, parser.Finish());
  return all;
}

// In one piece; checked to be the same byte by byte and cut in two anywhere.
Pieces Parse(std::string_view text, const OutputOptions& options) {
  const Pieces whole = ParseCut(text, options, [&] { return text.size(); });
  EXPECT_EQ(ParseCut(text, options, [] { return 1; }), whole) << text;
  for (size_t cut = 1; cut < std::min<size_t>(text.size(), 300); ++cut) {
    bool is_first = true;
    const Pieces two =
        ParseCut(text, options, [&] { return std::exchange(is_first, false) ? cut : text.size(); });
    EXPECT_EQ(two, whole) << "cut at " << cut << ": " << text;
  }
  return whole;
}

constexpr OutputOptions kAll{.parses_tool_calls = true};
constexpr OutputOptions kThinking{.starts_in_reasoning = true, .parses_tool_calls = true};

TEST(OutputParser, TakesApartWhatTheTemplateWrites) {
  EXPECT_THAT(Parse("<think>\nHm.\nSo.\n</think>\n\nLet me see.\n<tool_call>\n"
                    R"({"name": "f", "arguments": {"a": [1, 2.50], "b": {}}})"
                    "\n</tool_call>\n<tool_call>\n"
                    R"({"name": "g", "arguments": {}})"
                    "\n</tool_call>",
                    kAll),
              ElementsAre(Reasoning("Hm.\nSo."), Content("Let me see."),
                          Call("f", R"({"a": [1, 2.50], "b": {}})"), Call("g", "{}")));
}

// What comes back in the next turn's prompt must be what was generated, else no prefix of it is
// known.
TEST(OutputParser, TheTemplateWritesBackWhatWasRead) {
  const std::string answer =
      "<think>\nHm.\n</think>\n\nLet me see.\n\n<tool_call>\n"
      R"({"name": "f", "arguments": {"a":[1,2.50]}})"
      "\n</tool_call>\n<tool_call>\n"
      R"({"name": "g", "arguments": {}})"
      "\n</tool_call>";
  json::array calls;
  json::object message{{"role", "assistant"}};
  for (const OutputPiece& piece : Parse(answer, kAll)) {
    if (piece.kind == Kind::kReasoning) message["reasoning_content"] = piece.text;
    if (piece.kind == Kind::kContent) message["content"] = piece.text;
    if (piece.kind != Kind::kToolCall) continue;
    calls.push_back(json::object{{"name", piece.name}, {"arguments", piece.arguments_json}});
  }
  message["tool_calls"] = calls;
  const auto source =
      ReadFile(hearth::testing::SourceDir() + "/tests/golden/chat-templates/Qwen3.jinja", 1 << 20);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto parsed = ChatTemplate::Parse(*source);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto prompt = (*parsed)->Render(
      {{"messages", json::array{json::object{{"role", "user"}, {"content", "Hi"}}, message}}});
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_EQ(*prompt,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" + answer + "<|im_end|>\n");
}

TEST(OutputParser, PlainTextIsContentToTheByte) {
  for (const char* text : {"x", " \n x \n\n", "\n", "a < b </think> <think> c", "Größe 🎉<tool",
                           "<think", "<tool_call", "<<think>>", "a\n"}) {
    EXPECT_THAT(Parse(text, kAll), ElementsAre(Content(text))) << text;
  }
  EXPECT_THAT(Parse("", kAll), IsEmpty());
}

TEST(OutputParser, ReasoningMayBeginInThePrompt) {
  EXPECT_THAT(Parse("\nWell\n\n</think>\n\nYes", kThinking),
              ElementsAre(Reasoning("Well"), Content("Yes")));
  EXPECT_THAT(Parse("</think>Yes", kThinking), ElementsAre(Content("Yes")));
  EXPECT_THAT(Parse("cut off </thi", kThinking), ElementsAre(Reasoning("cut off </thi")));
  EXPECT_THAT(Parse("a\n\n\nb\n", kThinking), ElementsAre(Reasoning("a\n\n\nb")));
  EXPECT_TRUE(PromptOpensReasoning("<|im_start|>assistant\n<think>\n"));
  EXPECT_FALSE(PromptOpensReasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
  EXPECT_FALSE(PromptOpensReasoning(""));
}

TEST(OutputParser, EmptyReasoningIsNoPiece) {
  EXPECT_THAT(Parse("<think>\n\n</think>\n\nYes", kAll), ElementsAre(Content("Yes")));
  EXPECT_THAT(Parse("<think>\n\n</think>\n\n", kAll), IsEmpty());
}

TEST(OutputParser, CallsInsideReasoningAreReasoning) {
  EXPECT_THAT(
      Parse("I could <tool_call>{\"name\": \"f\"}</tool_call>.</think>No.", kThinking),
      ElementsAre(Reasoning("I could <tool_call>{\"name\": \"f\"}</tool_call>."), Content("No.")));
}

TEST(OutputParser, OptionsTurnTagsIntoText) {
  const std::string text = "<think>a</think><tool_call>{\"name\": \"f\"}</tool_call>";
  EXPECT_THAT(Parse(text, {.parses_reasoning = false}), ElementsAre(Content(text)));
  EXPECT_THAT(Parse(text, {}),
              ElementsAre(Reasoning("a"), Content("<tool_call>{\"name\": \"f\"}</tool_call>")));
}

TEST(OutputParser, BrokenCallsAreContentWithTheirTags) {
  for (const char* body :
       {"", "{", "{}", "[]", "nothing", R"({"name": 1})", R"({"name": ""})",
        R"({"name": "f", "arguments": "{}"})", R"({"name": "f", "arguments": [1]})",
        R"({"name": "f", "arguments": {"a": 01}})", R"({"name": "f"} x)", R"({"name": "f\"})"}) {
    const std::string text = "A\n<tool_call>\n" + std::string(body) + "\n</tool_call>";
    EXPECT_THAT(Parse(text, kAll), ElementsAre(Content(text)));
    EXPECT_THAT(Parse(text + "\n<tool_call>{\"name\": \"g\"}</tool_call>\nZ", kAll),
                ElementsAre(Content(text), Call("g", "{}"), Content("\nZ")))
        << body;
  }
}

TEST(OutputParser, AQuoteLeftOpenHidesNoLaterCall) {
  const std::string broken = "<tool_call>{\"name\": \"f}</tool_call>";
  EXPECT_THAT(Parse(broken + "\n<tool_call>{\"name\": \"g\"}</tool_call>", kAll),
              ElementsAre(Content(broken), Call("g", "{}")));
  EXPECT_THAT(Parse(broken + " end", kAll), ElementsAre(Content(broken + " end")));
}

TEST(OutputParser, TagsInsideArgumentsAreText) {
  const std::string arguments = R"({"s": "a \"</tool_call>\" <tool_call> \\", "t": "\"}</think>"})";
  EXPECT_THAT(
      Parse("<tool_call>{\"arguments\": " + arguments + ", \"name\": \"f\"}</tool_call>", kAll),
      ElementsAre(Call("f", arguments)));
}

TEST(OutputParser, AForgottenClosingTagLosesNoCall) {
  const std::string f = "<tool_call>\n{\"name\": \"f\"}\n", g = "<tool_call>\n{\"name\": \"g\"}\n";
  EXPECT_THAT(Parse(f + g + "</tool_call>", kAll), ElementsAre(Call("f", "{}"), Call("g", "{}")));
  EXPECT_THAT(Parse(f, kAll), ElementsAre(Call("f", "{}")));
  EXPECT_THAT(Parse(f + "</tool_c", kAll), ElementsAre(Call("f", "{}")));
  EXPECT_THAT(Parse("x\n<tool_call>\n{\"name\": \"f", kAll),
              ElementsAre(Content("x\n<tool_call>\n{\"name\": \"f")));
}

TEST(OutputParser, LongCallsAreContent) {
  OutputOptions options = kAll;
  options.max_tool_call_bytes = 20;
  const std::string fits = "{\"name\": \"12345678\"}", too_long = "{\"name\": \"1234567890\"}";
  EXPECT_THAT(Parse("<tool_call>" + fits + "</tool_call>", options),
              ElementsAre(Call("12345678", "{}")));
  const std::string text = "\n<tool_call>" + too_long + "</tool_call>";
  EXPECT_THAT(Parse(text, options), ElementsAre(Content(text)));
}

TEST(OutputParser, DeepArgumentsAreContent) {
  const std::string text =
      "<tool_call>{\"name\": \"f\", \"arguments\": " + std::string(10'000, '[') + "</tool_call>";
  EXPECT_THAT(Parse(text, kAll), ElementsAre(Content(text)));
}

TEST(OutputParser, HoldsBackNoMoreThanATagMayNeed) {
  OutputParser parser(kAll);
  EXPECT_THAT(parser.Push("Hi <to"), ElementsAre(Content("Hi ")));
  EXPECT_THAT(parser.Push("ol_cut"), ElementsAre(Content("<tool_cut")));
  EXPECT_THAT(parser.Push("\n"), IsEmpty());
  EXPECT_THAT(parser.Push("\n"), ElementsAre(Content("\n")));
  EXPECT_THAT(parser.Push("x"), ElementsAre(Content("\nx")));
  EXPECT_THAT(parser.Push("\n<tool_call>{\"name\": \"f\"}"), IsEmpty());
  EXPECT_THAT(parser.Push("</tool_call>"), ElementsAre(Call("f", "{}")));
  EXPECT_THAT(parser.Finish(), IsEmpty());

  OutputParser plain({.parses_reasoning = false});
  EXPECT_THAT(plain.Push(" <"), ElementsAre(Content(" <")));
}

TEST(OutputParser, EndlessWhiteSpaceIsNotHeldForever) {
  const std::string space(5000, '\n');
  for (const char* begin : {"", "x", "<think>x"}) {
    OutputParser parser(kAll);
    Pieces all = parser.Push(begin);
    for (int i = 0; i < 5000; ++i) Join(all, parser.Push("\n"));
    ASSERT_FALSE(all.empty()) << begin;
    EXPECT_GT(all.back().text.size(), 3000u) << begin;
  }
  Parse(space + "<think>a" + space + "</think>" + space + "b" + space +
            "<tool_call>{\"name\": \"f\"}</tool_call>",
        kAll);
}

// Each block would be read to the end for its closing tag, if a backslash could open a string.
TEST(OutputParser, TrickyBlocksAreReadOnce) {
  std::string text = "<tool_call>\"</tool_call>";
  for (int i = 0; i < 30'000; ++i) text += "<tool_call>\\\"</tool_call>";
  text += "\n";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(ParseCut(text, kAll, [&] { return text.size(); }), ElementsAre(Content(text)));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

// Whatever is said: the same pieces for every cut, quickly, and without options all of it.
TEST(OutputParser, RandomAnswersDoNotDependOnTheCut) {
  static constexpr const char* kWords[] = {
      "<think>", "</think>", "<tool_call>",       "</tool_call>",   "\n",  " ", "\"",     "\\",
      "<",       "a",        "{\"name\": \"f\"}", "{\"name\": \"f", "\"}", "é", "</tool", "_call>"};
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (size_t n = random() % 24; n > 0; --n) text += kWords[random() % std::size(kWords)];
    OutputOptions options;
    options.parses_reasoning = random() % 4 != 0;
    options.starts_in_reasoning = random() % 2 == 0;
    options.parses_tool_calls = random() % 4 != 0;
    options.max_tool_call_bytes = random() % 2 == 0 ? 20 : 1000;
    const Pieces whole = ParseCut(text, options, [&] { return text.size(); });
    EXPECT_EQ(ParseCut(text, options, [] { return 1; }), whole) << text;
    EXPECT_EQ(ParseCut(text, options, [&] { return 1 + random() % 9; }), whole) << text;
  }
}

}  // namespace
}  // namespace hearth
