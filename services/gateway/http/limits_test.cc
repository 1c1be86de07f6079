// HTTP as strangers may send it: limits, times, framing, Host, Origin, content type, keys.
#include <fstream>

#include "absl/strings/ascii.h"
#include "services/gateway/http/testing.h"

namespace hearth::gateway {
namespace {

using namespace testing;
using ::testing::HasSubstr;

class LimitsTest : public GatewayTest {};

// "5\r\nhello\r\n"
std::string Chunk(std::string_view data, std::string_view extension = "") {
  return absl::StrCat(absl::Hex(data.size()), ToAbsl(extension), "\r\n", ToAbsl(data), "\r\n");
}
std::string ChunkedHead(std::string_view path) {
  return absl::StrCat("POST ", ToAbsl(path),
                      " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                      "Transfer-Encoding: chunked\r\n\r\n");
}

TEST_F(LimitsTest, ALongHeaderIs431) {
  StartGateway({});
  const std::string fits(15 << 10, 'x'), long_one(17 << 10, 'x');
  EXPECT_EQ(Ask(Get("/health", absl::StrCat("X: ", fits, "\r\n"))).result_int(), 200u);
  for (const std::string& request :
       {Get("/health", absl::StrCat("X: ", long_one, "\r\n")), Get("/" + long_one),
        absl::StrCat("GET / HTTP/1.1\r\nHost: localhost\r\nX: ", std::string(1 << 20, 'x'))}) {
    const Response response = Ask(request);
    EXPECT_EQ(response.result_int(), 431u);
    EXPECT_EQ(ErrorOf(response).at("type"), "invalid_request_error");
    EXPECT_FALSE(response.keep_alive());
  }
}

TEST_F(LimitsTest, ALongBodyIs413BeforeItIsRead) {
  StartGateway({.max_body_bytes = 1024});
  Client client(port());
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 1025\r\nExpect: 100-continue\r\n\r\n");
  const Response response = client.Read();
  EXPECT_EQ(response.result_int(), 413u);
  EXPECT_EQ(client.n_interim(), 0);
  EXPECT_THAT(ErrorOf(response).at("message").get_string().c_str(), HasSubstr("1024"));
  const std::string body = absl::StrCat("{\"content\": \"", std::string(2000, 'x'), "\"}");
  EXPECT_EQ(Ask(Post("/tokenize", body)).result_int(), 413u);
  EXPECT_EQ(Ask(ChunkedHead("/tokenize") + Chunk(body)).result_int(), 413u);
  for (const char* length : {"18446744073709551615", "18446744073709551616", "-1", "1e3", "0x10"}) {
    const unsigned status = Ask(absl::StrCat("POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                                             "Content-Type: application/json\r\nContent-Length: ",
                                             length, "\r\n\r\n"))
                                .result_int();
    EXPECT_TRUE(status == 413 || status == 400) << length << " " << status;
  }
}

TEST_F(LimitsTest, ABodyAtTheLimitIsTaken) {
  Start({.max_body_bytes = 1024});
  const std::string body = absl::StrCat("{\"content\": \"", std::string(1024 - 15, 'x'), "\"}");
  ASSERT_EQ(body.size(), 1024u);
  EXPECT_EQ(Ask(Post("/tokenize", body)).result_int(), 200u);
  EXPECT_EQ(Ask(ChunkedHead("/tokenize") + Chunk(body) + "0\r\n\r\n").result_int(), 200u);
}

TEST_F(LimitsTest, AllBodiesTogetherAreBounded) {
  Start({.max_body_bytes = 1000, .max_bodies_bytes = 1500});
  Client first(port());
  first.Send(
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n");
  ASSERT_TRUE(first.ReadUntil("100 Continue"));
  const std::string body = absl::StrCat("{\"content\": \"", std::string(800, 'x'), "\"}");
  const Response refused = Ask(Post("/tokenize", body));
  EXPECT_EQ(refused.result_int(), 503u);
  EXPECT_EQ(refused[http::field::retry_after], "1");
  EXPECT_EQ(Ask(ChunkedHead("/tokenize") + Chunk(body) + "0\r\n\r\n").result_int(), 503u);
  EXPECT_EQ(Metric("hearth_gateway_rejected_total{reason=\"bodies\"}"), 2);
  first.Reset();
  EXPECT_TRUE(Eventually([&] { return Ask(Post("/tokenize", body)).result_int() == 200; }));
}

TEST_F(LimitsTest, ChunkedBodiesAreReadHoweverTheyAreCut) {
  Start();
  const std::string body = R"({"content": "AB"})";
  std::string bytes = ChunkedHead("/tokenize");
  for (const char c : body) bytes += Chunk(std::string_view(&c, 1));
  bytes += "0\r\n\r\n";
  EXPECT_EQ(Ask(bytes).body(), R"({"tokens":[65,66]})");
  Client slow(port());
  for (const char c : bytes) slow.Send(std::string_view(&c, 1));
  EXPECT_EQ(slow.Read().body(), R"({"tokens":[65,66]})");
}

// Once ended the process: found by fuzzing.
TEST_F(LimitsTest, AnEmptyChunkedBodyMayComeByteByByte) {
  Start();
  Client client(port());
  client.Send(ChunkedHead("/tokenize"));
  for (const char c : std::string_view("0\r\n\r\n")) {
    client.Send(std::string_view(&c, 1));
    EXPECT_EQ(Ask(Get("/health")).result_int(), 200u) << "and it has been read by now";
  }
  EXPECT_EQ(client.Read().result_int(), 400u) << "nothing is no JSON";
}

TEST_F(LimitsTest, AHundredThousandTinyChunksAreOneBody) {
  Start();
  std::string bytes = ChunkedHead("/tokenize") + Chunk("{\"content\": \"");
  for (int i = 0; i < 100'000; ++i) bytes += "1\r\nx\r\n";
  bytes += Chunk("\"}") + "0\r\n\r\n";
  Client client(port());
  ASSERT_TRUE(client.Send(bytes));
  const Response response = client.Read();
  EXPECT_EQ(response.result_int(), 200u);
  EXPECT_GT(response.body().size(), 300'000u);
}

TEST_F(LimitsTest, ChunkExtensionsAndEndlessChunkLinesAreRefused) {
  Start();
  const std::string body = R"({"content": "AB"})";
  EXPECT_EQ(Ask(ChunkedHead("/tokenize") + Chunk(body, ";a=b") + "0\r\n\r\n").result_int(), 400u);
  const std::string endless(1 << 20, 'x');
  EXPECT_EQ(Ask(ChunkedHead("/tokenize") + "1;a=" + endless).result_int(), 400u);
  EXPECT_EQ(Ask(ChunkedHead("/tokenize") + Chunk(body) + "0\r\nX: " + endless).result_int(), 400u);
  for (const char* bad : {"x\r\n", "-1\r\n", "fffffffffffffffff\r\n", "1\r\nab\r\n", "\r\n"}) {
    EXPECT_NE(Ask(ChunkedHead("/tokenize") + bad + "0\r\n\r\n").result_int(), 200u) << bad;
  }
}

TEST_F(LimitsTest, TwoLengthsAreRefused) {
  Start();
  const std::string body = R"({"content": "AB"})";
  for (const char* more : {"Transfer-Encoding: chunked\r\n", "Content-Length: 5\r\n"}) {
    EXPECT_EQ(Ask(Post("/tokenize", body, more)).result_int(), 400u) << more;
  }
}

TEST_F(LimitsTest, WhatIsNoHttpIs400) {
  StartGateway({});
  for (const std::string& bytes :
       {std::string("hello\r\n\r\n"), std::string("GET\r\n\r\n"),
        std::string("\x16\x03\x01\x02\r\n\r\n"),
        std::string("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nHost localhost\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nHost: localhost\r\nA b: c\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\n\r\n"),
        std::string("GET /\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n")}) {
    const Response response = Ask(bytes);
    EXPECT_EQ(response.result_int(), 400u) << bytes;
    ErrorOf(response);
  }
}

TEST_F(LimitsTest, JsonIsCheckedBeforeTheWorkerIsAsked) {
  Start();
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string(10'000, '['),
        absl::StrCat("{\"messages\": ", std::string(10'000, '['), "}"),
        std::string("{\"messages\": \"\xff\"}"), std::string("{\"messages\": NaN}")}) {
    const Response response = Ask(Post(kChatPath, body));
    EXPECT_EQ(response.result_int(), 400u) << body.substr(0, 50);
    EXPECT_EQ(ErrorOf(response).at("type"), "invalid_request_error");
  }
  EXPECT_EQ(ErrorOf(Ask(Chat(R"("temperature": 3)"))).at("param"), "temperature");
  EXPECT_TRUE(worker_.requests().empty());
}

TEST_F(LimitsTest, PathsAndMethodsHaveTheirErrors) {
  Start();
  EXPECT_EQ(Ask(Get("/nothing")).result_int(), 404u);
  const Response get = Ask(Get(kChatPath));
  EXPECT_EQ(get.result_int(), 405u);
  EXPECT_EQ(get[http::field::allow], "POST");
  EXPECT_EQ(ErrorOf(get).at("code"), "method_not_allowed");
  EXPECT_EQ(Ask(Post("/health", "{}")).result_int(), 405u);
  EXPECT_EQ(Ask("BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n").result_int(), 405u);
  Client client(port());
  client.Send("HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const Response head = client.Read(/*is_head=*/true);
  EXPECT_EQ(head.result_int(), 200u);
  EXPECT_EQ(head[http::field::content_length], "15");
}

// S12: each combination of Host, Origin and content type has the one answer.
TEST_F(LimitsTest, HostOriginAndContentTypeDecideTogether) {
  Start({}, *Guard::Create({"chat.example"}, {"https://app.example"}, ""));
  int n = 0;
  for (const char* host : {"localhost", "127.0.0.1:99", "chat.example", "evil.example"}) {
    for (const char* origin :
         {"", "http://HOST", "https://app.example", "http://evil.example", "null"}) {
      for (const char* type :
           {"application/json", "application/json; charset=utf-8", "Application/JSON", "text/plain",
            "application/jsonp", "multipart/form-data", ""}) {
        std::string sent_origin = origin;
        if (sent_origin == "http://HOST") sent_origin = absl::StrCat("http://", host);
        std::string request = absl::StrCat("POST /tokenize HTTP/1.1\r\nHost: ", host, "\r\n");
        if (!sent_origin.empty()) absl::StrAppend(&request, "Origin: ", sent_origin, "\r\n");
        if (*type != '\0') absl::StrAppend(&request, "Content-Type: ", type, "\r\n");
        absl::StrAppend(&request, "Content-Length: 15\r\n\r\n{\"content\":\"A\"}");
        const bool is_host = std::string_view(host) != "evil.example";
        const bool is_origin =
            std::string_view(origin) != "http://evil.example" && std::string_view(origin) != "null";
        const bool is_json = absl::AsciiStrToLower(type).substr(0, 16) == "application/json" &&
                             std::string_view(type) != "application/jsonp";
        const unsigned want = !is_host || !is_origin ? 403 : is_json ? 200 : 415;
        const Response response = Ask(request);
        EXPECT_EQ(response.result_int(), want) << request;
        const bool shows = response.count(http::field::access_control_allow_origin) > 0;
        EXPECT_EQ(shows, sent_origin == "https://app.example") << request;
        EXPECT_EQ(response.count(http::field::access_control_allow_credentials), 0u);
        ++n;
      }
    }
  }
  EXPECT_EQ(n, 140);
  EXPECT_EQ(Ask("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n").result_int(), 403u);
  EXPECT_EQ(Ask("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n").result_int(), 403u);
}

TEST_F(LimitsTest, PreflightsAreAnsweredForAllowedPagesOnly) {
  StartGateway({}, *Guard::Create({}, {"https://app.example"}, ""));
  const auto preflight = [&](const char* origin) {
    return Ask(absl::StrCat("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: ",
                            origin, "\r\nAccess-Control-Request-Method: POST\r\n",
                            "Access-Control-Request-Headers: content-type,x-stainless-os\r\n\r\n"));
  };
  const Response allowed = preflight("https://app.example");
  EXPECT_EQ(allowed.result_int(), 204u);
  EXPECT_EQ(allowed[http::field::access_control_allow_origin], "https://app.example");
  EXPECT_EQ(allowed[http::field::access_control_allow_methods], "POST");
  EXPECT_EQ(allowed[http::field::access_control_allow_headers], "*, authorization");
  EXPECT_EQ(preflight("https://evil.example").result_int(), 403u);
}

TEST_F(LimitsTest, EncodedBodiesAreRefused) {
  Start();
  EXPECT_EQ(Ask(Post("/tokenize", "{}", "Content-Encoding: gzip\r\n")).result_int(), 415u);
}

TEST_F(LimitsTest, KeysAreAskedForExceptByProbes) {
  std::string file = "/tmp/hearth-gateway-keys-XXXXXX";
  ::close(::mkstemp(file.data()));
  std::ofstream(file) << "sk-secret\n";
  StartWorker();
  StartGateway({}, *Guard::Create({}, {}, file));
  std::filesystem::remove(file);
  const std::string key = "Authorization: Bearer sk-secret\r\n";
  ASSERT_TRUE(Eventually([&] { return Ask(Get("/v1/models", key)).result_int() == 200; }));
  EXPECT_EQ(Ask(Post(kChatPath, ChatBody(), key)).result_int(), 200u);
  for (const std::string& request :
       {Chat(), Get("/v1/models"), Post("/tokenize", "{"),
        Post(kChatPath, ChatBody(), "Authorization: Bearer sk-secret2\r\n")}) {
    const Response response = Ask(request);
    EXPECT_EQ(response.result_int(), 401u);
    EXPECT_EQ(response[http::field::www_authenticate], "Bearer");
    EXPECT_EQ(ErrorOf(response).at("code"), "invalid_api_key");
  }
  EXPECT_EQ(Ask(Get("/health")).result_int(), 200u);
}

TEST_F(LimitsTest, RequestsFollowEachOtherOnAConnection) {
  Start();
  Client client(port());
  // All at once: answered one after the other, in order.
  client.Send(Get("/health") + Chat() + Chat(R"("stream": true)") +
              Post("/tokenize", R"({"content": "A"})") + Get("/nothing"));
  EXPECT_EQ(client.Read().body(), R"({"status":"ok"})");
  EXPECT_THAT(client.Read().body(), HasSubstr("Hello"));
  EXPECT_THAT(client.Read().body(), HasSubstr("[DONE]"));
  EXPECT_EQ(client.Read().body(), R"({"tokens":[65]})");
  EXPECT_EQ(client.Read().result_int(), 404u);
  client.Send(Get("/health", "Connection: close\r\n"));
  const Response last = client.Read();
  EXPECT_EQ(last[http::field::connection], "close");
  EXPECT_TRUE(client.ReadToEnd());
}

TEST_F(LimitsTest, OldClientsGetTheirStreamUntilTheEndOfTheConnection) {
  Start();
  Client client(port());
  const std::string body = ChatBody(R"("stream": true)");
  client.Send(absl::StrCat("POST ", ToAbsl(kChatPath),
                           " HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           "Content-Length: ",
                           body.size(), "\r\n\r\n", body));
  const auto all = client.ReadToEnd();
  ASSERT_TRUE(all);
  EXPECT_EQ(all->find("chunked"), std::string::npos);
  EXPECT_TRUE(all->ends_with("data: [DONE]\n\n"));
}

TEST_F(LimitsTest, ExpectContinueIsHonoured) {
  Start();
  Client client(port());
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 15\r\nExpect: 100-continue\r\n\r\n");
  ASSERT_TRUE(client.ReadUntil("100 Continue\r\n\r\n"));
  client.Send(R"({"content":"A"})");
  EXPECT_EQ(client.Read().body(), R"({"tokens":[65]})");
}

TEST_F(LimitsTest, TheRequestIdComesBack) {
  Start();
  EXPECT_EQ(Ask(Get("/health", "X-Request-Id: mine-7\r\n"))["x-request-id"], "mine-7");
  Ask(Post(kChatPath, ChatBody(), "X-Request-Id: mine-8\r\n"));
  EXPECT_EQ(worker_.requests().back().request_id(), "mine-8");
  EXPECT_EQ(Ask(Get("/health", "X-Request-Id: a\"b\r\n"))["x-request-id"].size(), 24u);
  EXPECT_EQ(Ask(Get("/health"))["x-content-type-options"], "nosniff");
}

TEST_F(LimitsTest, HeadersAndBodiesThatDoNotComeInTimeAre408) {
  Start({.times = {.header = 100ms, .body = 100ms}});
  EXPECT_EQ(Ask("GET / HTTP/1.1\r\nHost: loc").result_int(), 408u);
  const Response late =
      Ask("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
          "Content-Length: 100\r\n\r\n{");
  EXPECT_EQ(late.result_int(), 408u);
  EXPECT_FALSE(late.keep_alive());
  ErrorOf(late);
}

TEST_F(LimitsTest, IdleConnectionsAreClosed) {
  StartGateway({.times = {.idle = 50ms}});
  Client silent(port());
  EXPECT_EQ(silent.ReadToEnd(), "");
  Client polite(port());
  polite.Send(Get("/health"));
  EXPECT_EQ(polite.Read().result_int(), 200u);
  EXPECT_EQ(polite.ReadToEnd(), "");
}

TEST_F(LimitsTest, AConnectionTooManyIsToldSo) {
  StartGateway({.max_connections = 3});
  std::vector<std::unique_ptr<Client>> inside;
  for (int i = 0; i < 3; ++i) {
    inside.push_back(std::make_unique<Client>(port()));
    inside.back()->Send(Get("/health"));
    ASSERT_EQ(inside.back()->Read().result_int(), 200u);
  }
  Client extra(port());
  const Response response = extra.Read();
  EXPECT_EQ(response.result_int(), 503u);
  EXPECT_EQ(response[http::field::retry_after], "1");
  ErrorOf(response);
  inside.pop_back();
  EXPECT_TRUE(Eventually([&] { return Ask(Get("/health")).result_int() == 200; }));
}

}  // namespace
}  // namespace hearth::gateway
