// Requests that no server should believe, through the real gateway and worker: each is refused by
// the field that is wrong, and another client's text stays what it was.
#include "absl/strings/str_cat.h"
#include "common/base/json.h"
#include "tests/integration/cluster_testing.h"

namespace hearth::testing {
namespace {

using ::testing::HasSubstr;

struct BadRequest {
  std::string body;
  int status = 400;
  std::string message;  // part of it
  std::string path = "/v1/chat/completions";
};

std::string Chat(const std::string& more, const std::string& content = "\"hi\"") {
  return absl::StrCat(R"({"messages":[{"role":"user","content":)", content, "}],", more,
                      R"("stream":false})");
}

std::string Repeated(const std::string& part, size_t n) {
  std::string text;
  text.reserve(part.size() * n);
  for (size_t i = 0; i < n; ++i) text += part;
  return text;
}

std::vector<BadRequest> BadRequests() {
  const std::string deep = Repeated("[", 10000), deep_object = Repeated("{\"a\":", 10000);
  return {
      {.body = Chat("\"max_tokens\":3,", absl::StrCat("\"", Repeated("word ", 40000), "\"")),
       .message = "context"},
      {.body = Chat("\"max_tokens\":2147483647,"), .message = "max_tokens"},
      {.body = Chat("\"max_tokens\":-1,"), .message = "max_tokens"},
      {.body = Chat("\"max_tokens\":0,"), .message = "max_tokens"},
      {.body = Chat("\"max_tokens\":1e308,"), .message = "max_tokens"},
      {.body = Chat("\"max_tokens\":9223372036854775808,"), .message = "max_tokens"},
      {.body = Chat("\"max_tokens\":\"many\","), .message = "max_tokens"},
      {.body = Chat("\"temperature\":-0.1,"), .message = "temperature"},
      {.body = Chat("\"temperature\":1e308,"), .message = "temperature"},
      {.body = Chat("\"temperature\":NaN,"), .message = "JSON"},
      {.body = Chat("\"top_p\":-1,"), .message = "top_p"},
      {.body = Chat("\"top_k\":-2,"), .message = "top_k"},
      {.body = Chat("\"n\":1000000,"), .message = "n: "},
      {.body = Chat("\"n\":-1,"), .message = "n: "},
      {.body = Chat("\"seed\":9223372036854775808,"), .message = "seed"},
      {.body = Chat("\"logit_bias\":{\"-1\":1},"), .message = "logit_bias"},
      {.body = Chat("\"logit_bias\":{\"99999999\":1},"), .message = "logit_bias"},
      {.body = Chat("\"stop_token_ids\":[-1],"), .message = "stop_token_ids"},
      {.body = Chat("\"stop\":[1,2],"), .message = "stop"},
      {.body = Chat("\"messages\":[],"), .message = "messages"},
      {.body = Chat("", "\"\xff\xfe\""), .message = "JSON"},
      {.body = Chat("", "\"\xed\xa0\x80\""), .message = "JSON"},
      {.body = Chat("", "\"\xc0\xaf\""), .message = "JSON"},
      {.body = Chat("", "\"\\ud800\""), .message = "JSON"},
      {.body = Chat("", deep + Repeated("]", 10000)), .message = "JSON"},
      {.body = Chat("", deep), .message = "JSON"},
      {.body = deep_object + "1" + Repeated("}", 10000), .message = "JSON"},
      {.body = Chat(absl::StrCat("\"tools\":", deep, Repeated("]", 10000), ",")),
       .message = "JSON"},
      {.body = "", .message = ""},
      {.body = "{", .message = "JSON"},
      {.body = "[]", .message = "object"},
      {.body = "null", .message = "object"},
      {.body = R"({"messages":null})", .message = "messages"},
      {.body = R"({"messages":[{"role":"king","content":"hi"}]})", .message = "role"},
      {.body = R"({"model":"/etc/passwd","messages":[{"role":"user","content":"hi"}]})",
       .status = 404,
       .message = "model"},
      {.body = R"({"prompt":[-1]})", .message = "prompt", .path = "/v1/completions"},
      {.body = R"({"prompt":[2147483648]})", .message = "prompt", .path = "/v1/completions"},
      {.body = R"({"prompt":[999999]})", .message = "prompt", .path = "/v1/completions"},
      {.body = R"({"prompt":""})", .message = "prompt", .path = "/v1/completions"},
      {.body = R"({"prompt":"a","best_of":1000})", .message = "best_of", .path = "/v1/completions"},
      {.body = R"({"tokens":[-1]})", .message = "tokens", .path = "/detokenize"},
      {.body = R"({"tokens":[99999999]})", .message = "tokens", .path = "/detokenize"},
      {.body = R"({"content":5})", .message = "content", .path = "/tokenize"},
      {.body = R"({"messages":5})", .message = "messages", .path = "/apply-template"},
      {.body = "{}", .status = 404, .message = "", .path = "/v1/../../etc/passwd"},
      {.body = "{}", .status = 404, .message = "", .path = "/v1/nothing"},
  };
}

class ClusterBadRequestsTest : public ClusterTest {};

TEST_F(ClusterBadRequestsTest, EachIsRefusedByItsFieldAndOtherStreamsGoOnUnharmed) {
  Start();
  const pid_t worker = PidOf("gpu-worker"), gateway = PidOf("gateway");
  std::unique_ptr<TextStream> other;
  size_t which = 0, n_during = 0;
  const auto check_other = [&] {
    other->Finish();
    EXPECT_TRUE(other->is_whole()) << other->error();
    EXPECT_EQ(other->text(), oracle_[which]);
  };
  for (const BadRequest& bad : BadRequests()) {
    // One honest stream is always under way.
    if (other == nullptr || other->is_done()) {
      if (other != nullptr) check_other();
      which = (which + 1) % questions_.size();
      other = std::make_unique<TextStream>(port(), questions_[which]);
      ASSERT_TRUE(other->ReadBytes(1));
    }
    HttpCall call(port(), {.path = bad.path, .body = bad.body});
    const auto begin = steady_clock::now();
    ASSERT_TRUE(call.ReadAll(seconds(30))) << bad.body.substr(0, 200);
    EXPECT_LT(steady_clock::now() - begin, seconds(3)) << bad.body.substr(0, 200);
    EXPECT_EQ(call.status(), bad.status) << bad.body.substr(0, 200) << "\n" << call.body();
    EXPECT_THAT(call.body(), HasSubstr(bad.message)) << bad.body.substr(0, 200);
    EXPECT_LT(call.body().size(), 1000u) << "an error that repeats the request";
    other->ReadBytes(other->text().size() + 1);
    n_during += other->is_done() ? 0 : 1;
  }
  check_other();
  EXPECT_GT(n_during, BadRequests().size() / 2) << "the honest streams were too short";
  ExpectUndisturbed();
  EXPECT_EQ(PidOf("gpu-worker"), worker) << "it was restarted";
  EXPECT_EQ(PidOf("gateway"), gateway) << "it was restarted";
  EXPECT_TRUE(WaitForWorker(
      [](const auto& status) { return status.n_running() == 0 && status.kv_pages_used() == 0; },
      seconds(5)));
}

TEST_F(ClusterBadRequestsTest, ClientsThatLeaveFreeTheirPlacesAndHarmNobody) {
  Start();
  TextStream other(port(), questions_[1]);
  for (int i = 0; i < 30; ++i) {
    // Some leave before the first token, some in the middle.
    TextStream leaving(port(), {.prompt = "Tell me of the sea.", .max_tokens = 3000});
    if (i % 3 != 0) {
      EXPECT_TRUE(leaving.ReadBytes(static_cast<size_t>(i)));
    }
    leaving.call().Drop();
  }
  other.Finish();
  EXPECT_TRUE(other.is_whole());
  EXPECT_EQ(other.text(), oracle_[1]);
  EXPECT_TRUE(WaitForWorker(
      [](const auto& status) {
        return status.n_running() == 0 && status.n_waiting() == 0 && status.kv_pages_used() == 0;
      },
      seconds(3)));
  ExpectUndisturbed();
}

}  // namespace
}  // namespace hearth::testing
