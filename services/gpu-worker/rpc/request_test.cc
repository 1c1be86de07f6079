#include "services/gpu-worker/rpc/request.h"

#include <cmath>
#include <functional>
#include <limits>

#include "services/gpu-worker/rpc/chat_prompt.h"
#include "services/gpu-worker/rpc/testing.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::kContext;
using testing::kEos;
using testing::kVocab;
using ::testing::StartsWith;

class RequestTest : public testing::ServedFakeTest {
 protected:
  void SetUp() override { Serve(); }
  static v1::GenerateRequest Text(const std::string& text) {
    v1::GenerateRequest request;
    request.set_text(text);
    return request;
  }
  static v1::GenerateRequest Chat(const std::string& role, const std::string& content) {
    v1::GenerateRequest request;
    v1::ChatMessage* message = request.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(content);
    return request;
  }
  absl::StatusOr<GenerationRequest> Read(const v1::GenerateRequest& request) {
    return ToGenerationRequest(request, model_);
  }
};

TEST_F(RequestTest, EveryNumberIsTakenAtItsBoundsAndRefusedBeyondThemByName) {
  struct Field {
    const char* name;
    std::vector<double> good, bad;
    std::function<void(v1::GenerateRequest&, double)> set;
  };
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const auto f = [](double value) { return static_cast<float>(value); };
  const auto i = [](double value) { return static_cast<int32_t>(value); };
  const Field fields[] = {
      {"temperature",
       {0, 2},
       {-0.01, 2.01, kNan, kInf, 1e38},
       [&](auto& r, double v) { r.mutable_sampling()->set_temperature(f(v)); }},
      {"top_k",
       {0, kVocab},
       {-1, kVocab + 1, -2147483648.0},
       [&](auto& r, double v) { r.mutable_sampling()->set_top_k(i(v)); }},
      {"top_p",
       {1e-6, 1},
       {0, -1, 1.01, kNan},
       [&](auto& r, double v) { r.mutable_sampling()->set_top_p(f(v)); }},
      {"min_p",
       {0, 1},
       {-0.01, 1.01, kNan},
       [&](auto& r, double v) { r.mutable_sampling()->set_min_p(f(v)); }},
      {"presence_penalty",
       {-2, 2},
       {-2.01, 2.01, kNan},
       [&](auto& r, double v) { r.mutable_sampling()->set_presence_penalty(f(v)); }},
      {"frequency_penalty",
       {-2, 2},
       {-2.01, 2.01, kNan},
       [&](auto& r, double v) { r.mutable_sampling()->set_frequency_penalty(f(v)); }},
      {"repetition_penalty",
       {0.01, 10},
       {0, -1, 10.01, kNan},
       [&](auto& r, double v) { r.mutable_sampling()->set_repetition_penalty(f(v)); }},
      {"logprobs",
       {0, 20},
       {-1, 21},
       [&](auto& r, double v) { r.mutable_sampling()->set_logprobs(i(v)); }},
      {"logit_bias",
       {-100, 100},
       {-100.1, 100.1, kNan},
       [&](auto& r, double v) { (*r.mutable_sampling()->mutable_logit_bias())[3] = f(v); }},
      {"logit_bias",
       {0, kVocab - 1},
       {-1, kVocab},
       [&](auto& r, double v) { (*r.mutable_sampling()->mutable_logit_bias())[i(v)] = 1; }},
      {"max_tokens",
       {1, kContext},
       {0, -1, kContext + 1, 2147483647.0},
       [&](auto& r, double v) { r.set_max_tokens(i(v)); }},
      {"stop_token_ids",
       {0, kVocab - 1},
       {-1, kVocab},
       [&](auto& r, double v) { r.add_stop_token_ids(i(v)); }},
      {"prompt",
       {0, kVocab - 1},
       {-1, kVocab},
       [&](auto& r, double v) { r.mutable_tokens()->add_ids(i(v)); }},
      {"stop",
       {16},
       {17},
       [&](auto& r, double v) {
         for (int n = 0; n < v; ++n) r.add_stop("x");
       }},
      {"stop",
       {1, 1024},
       {0, 1025},
       [&](auto& r, double v) { r.add_stop(std::string(static_cast<size_t>(v), 'x')); }},
      {"request_id",
       {256},
       {257},
       [&](auto& r, double v) { r.set_request_id(std::string(static_cast<size_t>(v), 'x')); }},
      {"prompt",
       {1, kContext - 1},
       {0},
       [&](auto& r, double v) { r.set_text(std::string(static_cast<size_t>(v), 'x')); }},
  };
  for (const Field& field : fields) {
    for (const double value : field.good) {
      v1::GenerateRequest request = Text("hi");
      field.set(request, value);
      EXPECT_OK(Read(request)) << field.name << " = " << value;
    }
    for (const double value : field.bad) {
      v1::GenerateRequest request = Text("hi");
      field.set(request, value);
      EXPECT_THAT(Read(request), IsStatus(absl::StatusCode::kInvalidArgument,
                                          StartsWith(absl::StrCat(field.name, ": "))))
          << field.name << " = " << value;
    }
  }
}

TEST_F(RequestTest, AbsentFieldsTakeTheCheckpointsDefaults) {
  ASSERT_OK_AND_ASSIGN(GenerationRequest plain, Read(Text("hi")));
  EXPECT_EQ(plain.sampling.temperature, 1);
  EXPECT_EQ(plain.max_tokens, kContext);
  model_.config.defaults.temperature = 0.5;
  model_.config.defaults.top_k = 20;
  model_.config.defaults.top_p = 0.8;
  v1::GenerateRequest request = Text("hi");
  request.mutable_sampling()->set_top_k(3);
  ASSERT_OK_AND_ASSIGN(const GenerationRequest mixed, Read(request));
  EXPECT_EQ(mixed.sampling.temperature, 0.5f);
  EXPECT_EQ(mixed.sampling.top_k, 3);
  EXPECT_EQ(mixed.sampling.top_p, 0.8f);
  model_.config.defaults.do_sample = false;
  ASSERT_OK_AND_ASSIGN(const GenerationRequest greedy, Read(Text("hi")));
  EXPECT_EQ(greedy.sampling.temperature, 0);
}

TEST_F(RequestTest, SeedIsTheClientsOrAnotherEachTime) {
  v1::GenerateRequest request = Text("hi");
  EXPECT_NE(Read(request)->sampling.seed, Read(request)->sampling.seed);
  request.mutable_sampling()->set_seed(0);
  EXPECT_EQ(Read(request)->sampling.seed, 0u);
}

TEST_F(RequestTest, EosEndsTheTextUnlessIgnored) {
  v1::GenerateRequest request = Text("hi");
  request.add_stop_token_ids(5);
  EXPECT_THAT(Read(request)->stop_ids, ElementsAre(5, kEos));
  request.set_ignore_eos(true);
  EXPECT_THAT(Read(request)->stop_ids, ElementsAre(5));
}

TEST_F(RequestTest, PromptIsTheTemplatesTextTheTextOrTheTokens) {
  EXPECT_THAT(Read(Text("ab"))->prompt, ElementsAre(1, 2));
  v1::GenerateRequest tokens;
  tokens.mutable_tokens()->add_ids(7);
  tokens.set_echo(true);
  EXPECT_THAT(Read(tokens)->prompt, ElementsAre(7));
  EXPECT_EQ(Read(tokens)->echo, "g");
  EXPECT_EQ(Read(Chat("user", "b"))->prompt, *tokenizer_.Encode("user b ", {}));
  EXPECT_THAT(Read({}), IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("is missing")));
}

TEST_F(RequestTest, TooLongAPromptIsRefusedWithBothNumbers) {
  EXPECT_THAT(Read(Text(std::string(500, 'x'))),
              IsStatus(absl::StatusCode::kOutOfRange,
                       StartsWith("prompt: has 500 tokens, but prompt and answer together can have "
                                  "200")));
  EXPECT_THAT(Read(Chat("user", std::string(500, 'x'))),
              IsStatus(absl::StatusCode::kOutOfRange, StartsWith("messages: has ")));
}

TEST_F(RequestTest, BrokenChatsAreRefusedByField) {
  const auto refused = [&](const v1::GenerateRequest& request, const char* message) {
    EXPECT_THAT(Read(request), IsStatus(absl::StatusCode::kInvalidArgument, StartsWith(message)));
  };
  v1::GenerateRequest request;
  request.mutable_chat();
  refused(request, "messages: must have at least one");
  refused(Chat("king", "hi"), "messages[0].role: ");
  request = Chat("assistant", "hi");
  request.mutable_chat()->mutable_messages(0)->add_tool_calls();
  refused(request, "messages[0].tool_calls[0].function.name: ");
  for (const std::string& bad : {std::string("{"), std::string("[1]"), std::string(10000, '[')}) {
    request = Chat("user", "hi");
    request.mutable_chat()->add_tools_json("{}");
    request.mutable_chat()->add_tools_json(bad);
    refused(request, "tools[1]: ");
    request = Chat("user", "hi");
    request.mutable_chat()->set_template_kwargs_json(bad);
    refused(request, "chat_template_kwargs: ");
  }
  model_.chat_template = nullptr;
  EXPECT_THAT(Read(Chat("user", "hi")),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("no chat template")));
}

TEST_F(RequestTest, ChatsWhosePromptEndsInsideTheReasoningSaySo) {
  EXPECT_FALSE(Read(Chat("user", "hi"))->opens_reasoning);
  ASSERT_OK_AND_ASSIGN(template_, ChatTemplate::Parse("{{ messages[0].content }}<think>\n"));
  model_.chat_template = template_.get();
  EXPECT_TRUE(Read(Chat("user", "hi"))->opens_reasoning);
  EXPECT_FALSE(Read(Text("a<think>\n"))->opens_reasoning) << "a text is continued as it is";
}

TEST_F(RequestTest, TemplateVariablesCannotReplaceTheMessages) {
  v1::GenerateRequest request = Chat("user", "hi");
  request.mutable_chat()->set_template_kwargs_json(
      R"({"messages": [], "tools": [1], "add_generation_prompt": 7})");
  EXPECT_EQ(*RenderChat(template_.get(), request.chat()), "user hi ");
}

}  // namespace
}  // namespace hearth::worker
