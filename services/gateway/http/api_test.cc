// Every endpoint over a socket, with a scripted worker behind.
#include "services/gateway/http/testing.h"

namespace hearth::gateway {
namespace {

using namespace testing;
using ::testing::HasSubstr;

class ApiTest : public GatewayTest {};

json::value Json(const Response& response) {
  const auto value = ParseJson(response.body());
  EXPECT_TRUE(value.ok()) << response.body();
  return value.ok() ? *value : json::value();
}

TEST_F(ApiTest, AChatIsAnsweredWhole) {
  Start();
  const Response response = Ask(Chat(R"("model": "demo", "temperature": 0)"));
  ASSERT_EQ(response.result_int(), 200u) << response.body();
  EXPECT_EQ(response[http::field::content_type], "application/json");
  const json::value answer = Json(response);
  EXPECT_EQ(answer.at("object"), "chat.completion");
  EXPECT_EQ(answer.at("model"), "demo");
  EXPECT_EQ(answer.at("choices").at(0).at("message").at("content"), "Hello");
  EXPECT_EQ(answer.at("usage").at("total_tokens"), 5);
  EXPECT_TRUE(answer.at("id").get_string().starts_with("chatcmpl-"));
  ASSERT_EQ(worker_.requests().size(), 1u);
  EXPECT_EQ(worker_.requests()[0].chat().messages(0).content(), "hi");
}

TEST_F(ApiTest, AChatIsStreamed) {
  Start();
  const Response response =
      Ask(Chat(R"("stream": true, "stream_options": {"include_usage": true})"));
  ASSERT_EQ(response.result_int(), 200u);
  EXPECT_EQ(response[http::field::content_type], "text/event-stream; charset=utf-8");
  EXPECT_EQ(response[http::field::cache_control], "no-cache");
  EXPECT_TRUE(response.chunked());
  EXPECT_THAT(response.body(), HasSubstr(R"("delta":{"content":"Hel"})"));
  EXPECT_THAT(response.body(), HasSubstr(R"("choices":[],"usage":{"prompt_tokens":3)"));
  EXPECT_TRUE(response.body().ends_with("data: [DONE]\n\n"));
}

TEST_F(ApiTest, AStreamsEventsComeAsTheyAreMade) {
  Start();
  worker_.SetScript(ScriptedWorker::Hang({ScriptedWorker::Started(), ScriptedWorker::Text("one")}));
  Client client(port());
  client.Send(Chat(R"("stream": true)"));
  EXPECT_TRUE(client.ReadUntil(R"("content":"one")")) << "although the worker has not ended";
}

TEST_F(ApiTest, CompletionsAreAnsweredBothWays) {
  Start();
  const json::value whole = Json(Ask(Post("/v1/completions", R"({"prompt": ["a", "b"]})")));
  EXPECT_EQ(whole.at("object"), "text_completion");
  EXPECT_EQ(whole.at("choices").get_array().size(), 2u);
  EXPECT_EQ(whole.at("choices").at(1).at("text"), "Hello");
  EXPECT_EQ(whole.at("usage").at("prompt_tokens"), 6);
  EXPECT_EQ(worker_.requests()[0].max_tokens(), 16);
  const Response stream = Ask(Post("/v1/completions", R"({"prompt": "a", "stream": true})"));
  EXPECT_THAT(stream.body(), HasSubstr(R"("text":"Hel")"));
  EXPECT_TRUE(stream.body().ends_with("data: [DONE]\n\n"));
}

TEST_F(ApiTest, ToolCallsComeInOpenAisShape) {
  Start();
  worker_.SetScript(ScriptedWorker::Say(
      {"<tool_call>\n{\"name\": \"f\", ", "\"arguments\": {\"x\": 1}}\n</tool_call>"}));
  const json::value answer =
      Json(Ask(Chat(R"("tools": [{"type": "function", "function": {"name": "f"}}])")));
  const json::value& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_EQ(choice.at("message").at("tool_calls").at(0).at("function").at("arguments"),
            "{\"x\": 1}");
}

TEST_F(ApiTest, ModelsAreListedAndFound) {
  Start();
  const json::value list = Json(Ask(Get("/v1/models")));
  EXPECT_EQ(list.at("object"), "list");
  EXPECT_EQ(list.at("data").at(0).at("id"), "demo");
  EXPECT_EQ(list.at("data").at(0).at("object"), "model");
  EXPECT_EQ(list.at("data").at(0).at("created"), 77);
  EXPECT_EQ(Json(Ask(Get("/v1/models/%64emo"))).at("id"), "demo");
  const Response other = Ask(Get("/v1/models/gpt-4"));
  EXPECT_EQ(other.result_int(), 404u);
  EXPECT_EQ(ErrorOf(other).at("code"), "model_not_found");
}

TEST_F(ApiTest, AnotherModelIsNotFoundWhereverItIsAskedFor) {
  Start();
  for (const std::string& request :
       {Chat(R"("model": "x")"), Post("/v1/completions", R"({"model": "x", "prompt": "a"})"),
        Post("/tokenize", R"({"model": "x", "content": "a"})")}) {
    const Response response = Ask(request);
    EXPECT_EQ(response.result_int(), 404u);
    EXPECT_EQ(ErrorOf(response).at("param"), "model");
    EXPECT_EQ(ErrorOf(response).at("code"), "model_not_found");
  }
  EXPECT_TRUE(worker_.requests().empty());
}

TEST_F(ApiTest, TheHelpersHaveLlamaServersShapes) {
  Start();
  EXPECT_EQ(Ask(Post("/tokenize", R"({"content": "AB"})")).body(), R"({"tokens":[65,66]})");
  EXPECT_EQ(Ask(Post("/detokenize", R"({"tokens": [65, 66]})")).body(), R"({"content":"AB"})");
  EXPECT_EQ(Ask(Post("/apply-template", ChatBody())).body(), R"({"prompt":"user:hi"})");
  const Response bad = Ask(Post("/detokenize", R"({"tokens": [65, 200]})"));
  EXPECT_EQ(bad.result_int(), 400u);
  EXPECT_EQ(ErrorOf(bad).at("param"), "tokens");
}

TEST_F(ApiTest, HealthReadinessAndMetrics) {
  Start();
  EXPECT_EQ(Ask(Get("/health")).body(), R"({"status":"ok"})");
  const Response ready = Ask(Get("/ready"));
  EXPECT_EQ(ready.result_int(), 200u);
  EXPECT_EQ(Json(ready).at("status"), "ready");
  Ask(Chat());
  const Response metrics = Ask(Get("/metrics"));
  EXPECT_THAT(std::string(metrics[http::field::content_type]), HasSubstr("version=0.0.4"));
  EXPECT_THAT(metrics.body(),
              HasSubstr("hearth_gateway_http_requests_total{code=\"200\",method=\"POST\",path=\""
                        "/v1/chat/completions\"} 1"));
  EXPECT_THAT(metrics.body(), HasSubstr("hearth_gateway_rejected_total{reason=\"queue\"} 0"));
  EXPECT_THAT(Ask(Get("/")).body(), HasSubstr("OpenAI"));
}

TEST_F(ApiTest, WhileTheModelLoadsRequestsAre503WithTheProgress) {
  v1::WorkerStatus loading;
  loading.set_state(v1::WORKER_STATE_WAITING_FOR_STORE);
  loading.set_loading_fraction(0.43);
  loading.set_message("the expert store: open /dev/shm/secret: 0x7f0012345678");
  worker_.SetStatus(loading);
  Start();
  const Response ready = Ask(Get("/ready"));
  EXPECT_EQ(ready.result_int(), 503u);
  EXPECT_EQ(ready[http::field::retry_after], "1");
  EXPECT_EQ(Json(ready).at("status"), "loading");
  EXPECT_EQ(Json(ready).at("progress"), 0.43);
  EXPECT_EQ(ready.body().find("secret"), std::string::npos) << "no path leaves the server";
  for (const std::string& request : {Chat(), Post("/tokenize", R"({"content": "a"})")}) {
    const Response response = Ask(request);
    EXPECT_EQ(response.result_int(), 503u);
    EXPECT_EQ(response[http::field::retry_after], "1");
    EXPECT_THAT(ErrorOf(response).at("message").get_string().c_str(), HasSubstr("43 % done"));
    EXPECT_EQ(response.body().find("secret"), std::string::npos);
  }
  EXPECT_EQ(Ask(Get("/health")).result_int(), 200u);
  EXPECT_TRUE(worker_.requests().empty());
}

TEST_F(ApiTest, WithoutAWorkerRequestsAre503AndTheGatewayLives) {
  StartGateway({});
  EXPECT_EQ(Ask(Get("/health")).result_int(), 200u);
  EXPECT_EQ(Json(Ask(Get("/ready"))).at("status"), "unavailable");
  EXPECT_EQ(Ask(Get("/v1/models")).result_int(), 503u);
  const Response response = Ask(Chat());
  EXPECT_EQ(response.result_int(), 503u);
  EXPECT_EQ(response[http::field::retry_after], "1");
  EXPECT_EQ(ErrorOf(response).at("type"), "server_error");
  StartWorker();
  EXPECT_TRUE(Eventually([&] { return Ask(Chat()).result_int() == 200; })) << "it is found";
}

TEST_F(ApiTest, AWorkerThatDiesEndsItsStreamsWithAnEvent) {
  Start();
  worker_.SetScript(ScriptedWorker::Hang({ScriptedWorker::Started(), ScriptedWorker::Text("one")}));
  Client streaming(port()), waiting(port());
  streaming.Send(Chat(R"("stream": true)"));
  ASSERT_TRUE(streaming.ReadUntil(R"("content":"one")"));
  waiting.Send(Chat());
  ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 2; }));
  StopWorker();
  const Response stream = streaming.Read();
  EXPECT_EQ(stream.result_int(), 200u);
  EXPECT_THAT(stream.body(), HasSubstr(R"(data: {"error":{"message":")"));
  EXPECT_EQ(stream.body().find("[DONE]"), std::string::npos);
  EXPECT_EQ(stream.body().find("worker.sock"), std::string::npos);
  const Response whole = waiting.Read();
  EXPECT_EQ(whole.result_int(), 503u);
  EXPECT_EQ(whole[http::field::retry_after], "1");
  EXPECT_TRUE(Eventually([&] { return Ask(Get("/ready")).result_int() == 503; }));
}

TEST_F(ApiTest, AFullQueueIs429WithRetryAfter) {
  Start();
  worker_.SetScript(
      ScriptedWorker::Fail(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full"));
  for (const char* more : {"", R"("stream": true)"}) {
    const Response response = Ask(Chat(more));
    EXPECT_EQ(response.result_int(), 429u);
    EXPECT_EQ(response[http::field::retry_after], "1");
    EXPECT_EQ(ErrorOf(response).at("type"), "rate_limit_error");
    EXPECT_EQ(ErrorOf(response).at("message"), "the queue is full");
  }
  EXPECT_EQ(Metric("hearth_gateway_rejected_total{reason=\"queue\"}"), 2);
}

TEST_F(ApiTest, MoreGenerationsThanFitAre429) {
  Start({.max_requests = 2});
  worker_.SetScript(ScriptedWorker::Hang({ScriptedWorker::Started()}));
  Client first(port()), second(port());
  first.Send(Chat());
  second.Send(Chat());
  ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 2; }));
  EXPECT_EQ(Ask(Chat()).result_int(), 429u);
  EXPECT_EQ(Ask(Get("/health")).result_int(), 200u);
  first.Reset();
  ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 1; }));
  worker_.SetScript(ScriptedWorker::Say({"x"}));
  EXPECT_TRUE(Eventually([&] { return Ask(Chat()).result_int() == 200; }));
  EXPECT_EQ(Ask(Chat(R"("n": 3)")).result_int(), 429u) << "each choice counts";
}

TEST_F(ApiTest, TheWorkersRefusalsKeepTheirFieldAndCode) {
  Start();
  worker_.SetScript(
      ScriptedWorker::Fail(grpc::StatusCode::OUT_OF_RANGE, "messages: has 9000 tokens, ..."));
  for (const char* more : {"", R"("stream": true)"}) {
    const Response response = Ask(Chat(more));
    EXPECT_EQ(response.result_int(), 400u);
    EXPECT_EQ(ErrorOf(response).at("param"), "messages");
    EXPECT_EQ(ErrorOf(response).at("code"), "context_length_exceeded");
  }
  worker_.SetScript(
      ScriptedWorker::Fail(grpc::StatusCode::INVALID_ARGUMENT, "max_tokens: too many"));
  EXPECT_EQ(ErrorOf(Ask(Chat(R"("max_tokens": 5)"))).at("param"), "max_tokens");
  const json::object renamed = ErrorOf(Ask(Chat(R"("max_completion_tokens": 5)")));
  EXPECT_EQ(renamed.at("param"), "max_completion_tokens");
  EXPECT_EQ(renamed.at("message"), "max_completion_tokens: too many");
}

TEST_F(ApiTest, ErrorsInsideTheServerTellNothing) {
  Start();
  for (const auto code : {grpc::StatusCode::INTERNAL, grpc::StatusCode::UNKNOWN,
                          grpc::StatusCode::DATA_LOSS, grpc::StatusCode::CANCELLED}) {
    worker_.SetScript(ScriptedWorker::Fail(code, "/run/hearth/segment at 0x7f0012345678"));
    const Response response = Ask(Chat());
    EXPECT_GE(response.result_int(), 500u);
    EXPECT_EQ(response.body().find("/run"), std::string::npos);
    EXPECT_EQ(response.body().find("0x7f"), std::string::npos);
  }
}

TEST_F(ApiTest, AnErrorInMidStreamIsTheLastEvent) {
  Start();
  worker_.SetScript([](auto&, const auto&, ScriptedWorker::Writer& writer) {
    writer.Write(ScriptedWorker::Started());
    writer.Write(ScriptedWorker::Text("half"));
    return grpc::Status(grpc::StatusCode::INTERNAL, "broken");
  });
  Client client(port());
  client.Send(Chat(R"("stream": true)"));
  const Response response = client.Read();
  EXPECT_EQ(response.result_int(), 200u);
  const size_t text = response.body().find("half"), error = response.body().find("{\"error\":");
  EXPECT_NE(text, std::string::npos);
  EXPECT_NE(error, std::string::npos);
  EXPECT_LT(text, error);
  EXPECT_TRUE(response.body().ends_with("}}\n\n"));
  worker_.SetScript(ScriptedWorker::Say({"x"}));
  client.Send(Chat());
  EXPECT_EQ(client.Read().result_int(), 200u) << "the connection goes on";
}

TEST_F(ApiTest, AnAnswerThatEndsWithoutAReasonIsAnError) {
  Start();
  worker_.SetScript([](auto&, const auto&, ScriptedWorker::Writer& writer) {
    writer.Write(ScriptedWorker::Text("half"));
    return grpc::Status::OK;
  });
  EXPECT_EQ(Ask(Chat()).result_int(), 500u);
}

TEST_F(ApiTest, OneFailedChoiceEndsTheOthers) {
  Start();
  worker_.SetScript([](grpc::ServerContext& context, const v1::GenerateRequest& request, auto&) {
    if (request.request_id().ends_with(".1")) {
      return grpc::Status(grpc::StatusCode::INTERNAL, "broken");
    }
    ScriptedWorker::WaitForCancel(context);
    return grpc::Status::CANCELLED;
  });
  EXPECT_EQ(Ask(Chat(R"("n": 3)")).result_int(), 500u);
  EXPECT_TRUE(Eventually([&] { return worker_.n_running() == 0; }));
}

TEST_F(ApiTest, ARequestHasADeadline) {
  Start({.request_timeout = 200ms});
  worker_.SetScript(ScriptedWorker::Hang({ScriptedWorker::Started()}));
  const Response response = Ask(Chat());
  EXPECT_EQ(response.result_int(), 504u);
  EXPECT_EQ(ErrorOf(response).at("code"), "timeout");
  const Response stream = Ask(Chat(R"("stream": true)"));
  EXPECT_THAT(stream.body(), HasSubstr("\"code\":\"timeout\""));
  EXPECT_TRUE(Eventually([&] { return worker_.n_running() == 0; }));
}

TEST_F(ApiTest, AQuietStreamIsKeptOpenByComments) {
  Start({.times = {.quiet = 20ms}});
  worker_.SetScript(ScriptedWorker::Hang({ScriptedWorker::Started()}));
  Client client(port());
  client.Send(Chat(R"("stream": true)"));
  EXPECT_TRUE(client.ReadUntil("4\r\n: \n\n\r\n4\r\n: \n\n\r\n"));
}

// Ready means that a token comes out (reliability.md, fault 22).
TEST_F(ApiTest, AnIdleWorkerIsReadyByAProbeOfOneToken) {
  v1::WorkerStatus idle;
  idle.set_state(v1::WORKER_STATE_READY);
  idle.set_ms_since_last_token(60'000);
  worker_.SetStatus(idle);
  Start();
  EXPECT_EQ(Ask(Get("/ready")).result_int(), 200u);
  ASSERT_EQ(worker_.requests().size(), 1u);
  EXPECT_EQ(worker_.requests()[0].max_tokens(), 1);
  EXPECT_EQ(Ask(Get("/ready")).result_int(), 200u);
  EXPECT_EQ(worker_.requests().size(), 1u) << "a probe's result lasts a while";
}

TEST_F(ApiTest, AWorkerWithoutTokensIsNotReady) {
  v1::WorkerStatus idle;
  idle.set_state(v1::WORKER_STATE_READY);
  idle.set_ms_since_last_token(-1);
  worker_.SetStatus(idle);
  worker_.SetScript(ScriptedWorker::Fail(grpc::StatusCode::INTERNAL, "no GPU"));
  Start();
  const Response response = Ask(Get("/ready"));
  EXPECT_EQ(response.result_int(), 503u);
  EXPECT_EQ(Json(response).at("status"), "unresponsive");
}

}  // namespace
}  // namespace hearth::gateway
