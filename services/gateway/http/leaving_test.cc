// Clients that leave, however and in whatever phase, clients that don't read, and the server's own
// end.
#include "services/gateway/http/testing.h"

namespace hearth::gateway {
namespace {

using namespace testing;
using ::testing::HasSubstr;

class LeavingTest : public GatewayTest {};

enum class Way { kReset, kClose };

struct Phase {
  const char* name;
  std::vector<v1::GenerateEvent> events;  // sent before the worker falls silent
  const char* seen;                       // what a streaming client has read by then
};

std::vector<Phase> Phases() {
  const auto started = ScriptedWorker::Started();
  return {{"queued", {}, nullptr},
          {"reading the prompt", {started}, "\"role\":\"assistant\""},
          {"decoding", {started, ScriptedWorker::Text("one")}, "\"content\":\"one\""},
          {"holding back a tag",
           {started, ScriptedWorker::Text("one"), ScriptedWorker::Text("<tool_")},
           "\"content\":\"one\""},
          {"finished but not ended",
           {started, ScriptedWorker::Text("one"), ScriptedWorker::Finished(1)},
           "\"finish_reason\":\"stop\""}};
}

TEST_F(LeavingTest, AClientThatLeavesIsCancelledInEveryPhaseEitherWay) {
  Start();
  int n_left = 0;
  for (const Phase& phase : Phases()) {
    for (const bool stream : {false, true}) {
      for (const Way way : {Way::kReset, Way::kClose}) {
        SCOPED_TRACE(absl::StrCat(phase.name, stream ? ", streaming" : "",
                                  way == Way::kReset ? ", reset" : ", closed"));
        worker_.SetScript(ScriptedWorker::Hang(phase.events));
        Client client(port());
        client.Send(Chat(stream ? R"("stream": true)" : ""));
        ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 1; }));
        const bool has_seen = !stream || phase.seen == nullptr || client.ReadUntil(phase.seen);
        ASSERT_TRUE(has_seen);
        const auto left = Clock::now();
        if (way == Way::kReset) {
          client.Reset();
        } else {
          client.Close();
        }
        ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 0; }));
        EXPECT_LT(Clock::now() - left, 2s);
        EXPECT_EQ(worker_.n_cancelled(), ++n_left);
      }
    }
  }
  EXPECT_EQ(Metric("hearth_gateway_client_disconnects_total"), n_left);
  EXPECT_EQ(Metric("hearth_gateway_streams_open"), 0);
}

TEST_F(LeavingTest, AllChoicesOfAClientThatLeavesAreCancelled) {
  Start();
  worker_.SetScript(ScriptedWorker::Hang({ScriptedWorker::Started()}));
  Client client(port());
  client.Send(Chat(R"("n": 4)"));
  ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 4; }));
  client.Reset();
  EXPECT_TRUE(Eventually([&] { return worker_.n_cancelled() == 4; }));
}

// Legal HTTP/1.1: the client has said all it will, and waits.
TEST_F(LeavingTest, AClientThatOnlyStopsSendingGetsItsAnswer) {
  Start();
  for (const bool stream : {false, true}) {
    std::promise<void> go_on;
    worker_.SetScript([&](auto&, const auto&, ScriptedWorker::Writer& writer) {
      writer.Write(ScriptedWorker::Started());
      go_on.get_future().wait();
      writer.Write(ScriptedWorker::Text("done"));
      writer.Write(ScriptedWorker::Finished(1));
      return grpc::Status::OK;
    });
    Client client(port());
    client.Send(Chat(stream ? R"("stream": true)" : ""));
    ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 1; }));
    client.HalfClose();
    // The gateway asks by a harmless byte or two, which arrive: it has seen the end by then.
    ASSERT_TRUE(client.ReadUntil(stream ? ": \n\n" : "102 Processing"));
    go_on.set_value();
    const Response response = client.Read();
    EXPECT_EQ(response.result_int(), 200u);
    EXPECT_THAT(response.body(), HasSubstr("done"));
    const auto answered = Clock::now();
    EXPECT_TRUE(client.ReadToEnd());
    EXPECT_LT(Clock::now() - answered, 5s) << "the server does not wait for more";
    ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 0; }));
  }
  EXPECT_EQ(worker_.n_cancelled(), 0);
}

TEST_F(LeavingTest, AClientThatSendsAheadAndLeavesIsCancelledToo) {
  Start();
  worker_.SetScript(ScriptedWorker::Hang({ScriptedWorker::Started()}));
  for (const size_t n_ahead : {size_t{100}, size_t{70} << 10}) {
    const int n_cancelled = worker_.n_cancelled();
    Client client(port());
    client.Send(Chat() + Get("/" + std::string(n_ahead, 'x')));
    ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 1; }));
    client.Reset();
    EXPECT_TRUE(Eventually([&] { return worker_.n_cancelled() == n_cancelled + 1; })) << n_ahead;
  }
}

TEST_F(LeavingTest, LeavingInMidHeaderOrBodyIsHarmless) {
  Start();
  for (const char* part : {"", "GET / HT",
                           "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                           "Content-Type: application/json\r\n"
                           "Content-Length: 100\r\n\r\n{\"con"}) {
    for (const Way way : {Way::kReset, Way::kClose}) {
      Client client(port());
      client.Send(part);
      if (way == Way::kReset) {
        client.Reset();
      } else {
        client.Close();
      }
    }
  }
  // The one that asks is the one that is open.
  EXPECT_TRUE(Eventually([&] { return Metric("hearth_gateway_open_connections") == 1; }));
}

// Fault 7: parked by the worker's flow control, then cancelled; others don't notice.
TEST_F(LeavingTest, AClientThatDoesNotReadIsParkedThenCancelled) {
  Start({.times = {.write = 700ms}});
  std::atomic<int64_t> n_bytes = 0;
  const std::string text(64 << 10, 'x');
  worker_.SetScript([&](grpc::ServerContext& context, const v1::GenerateRequest& request,
                        ScriptedWorker::Writer& writer) {
    if (request.max_tokens() == 1) return grpc::Status::OK;
    writer.Write(ScriptedWorker::Started());
    while (writer.Write(ScriptedWorker::Text(text))) n_bytes += static_cast<int64_t>(text.size());
    ScriptedWorker::WaitForCancel(context);  // a write may fail a moment before
    return grpc::Status::CANCELLED;
  });
  Client deaf(port(), /*receive_buffer_bytes=*/4096);
  deaf.Send(Chat(R"("stream": true)"));
  ASSERT_TRUE(Eventually([&] { return n_bytes > 0; }));
  while (worker_.n_running() > 0) {
    ASSERT_EQ(Ask(Get("/health")).result_int(), 200u);
  }
  EXPECT_EQ(worker_.n_cancelled(), 1);
  EXPECT_LT(n_bytes, int64_t{24} << 20) << "the worker was not made to wait";
  EXPECT_TRUE(Eventually([&] { return Metric("hearth_gateway_streams_open") == 0; }));
}

TEST_F(LeavingTest, DrainLetsRunningRequestsFinishAndTakesNoMore) {
  Start();
  std::promise<void> go_on;
  worker_.SetScript([&](auto&, const auto&, ScriptedWorker::Writer& writer) {
    writer.Write(ScriptedWorker::Started());
    go_on.get_future().wait();
    writer.Write(ScriptedWorker::Text("done"));
    writer.Write(ScriptedWorker::Finished(1));
    return grpc::Status::OK;
  });
  Client running(port()), idle(port());
  running.Send(Chat());
  idle.Send(Get("/health"));
  ASSERT_EQ(idle.Read().result_int(), 200u);
  ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 1; }));
  BeginStop(20s);
  EXPECT_EQ(idle.ReadToEnd(), "") << "closed at once";
  EXPECT_FALSE(Client(port()).is_connected());
  go_on.set_value();
  const Response response = running.Read();
  EXPECT_EQ(response.result_int(), 200u);
  EXPECT_THAT(response.body(), HasSubstr("done"));
  EXPECT_FALSE(response.keep_alive());
  const auto done = Clock::now();
  running.Close();
  StopGateway(20s);
  EXPECT_LT(Clock::now() - done, 5s) << "it ends with its last request, not with the grace";
}

TEST_F(LeavingTest, DrainEndsWhatRunsTooLongWithAnError) {
  Start();
  worker_.SetScript(ScriptedWorker::Hang({ScriptedWorker::Started(), ScriptedWorker::Text("one")}));
  Client streaming(port()), waiting(port());
  streaming.Send(Chat(R"("stream": true)"));
  waiting.Send(Chat());
  ASSERT_TRUE(streaming.ReadUntil("one"));
  ASSERT_TRUE(Eventually([&] { return worker_.n_running() == 2; }));
  StopGateway(50ms);
  const Response stream = streaming.Read();
  EXPECT_THAT(stream.body(), HasSubstr("\"code\":\"unavailable\""));
  EXPECT_EQ(waiting.Read().result_int(), 503u);
  EXPECT_TRUE(Eventually([&] { return worker_.n_running() == 0; }));
  EXPECT_EQ(worker_.n_cancelled(), 2);
}

TEST_F(LeavingTest, DrainDoesNotWaitForClientsThatDoNotRead) {
  Start();
  worker_.SetScript([](auto&, const auto&, ScriptedWorker::Writer& writer) {
    const std::string text(64 << 10, 'x');
    while (writer.Write(ScriptedWorker::Text(text))) {
    }
    return grpc::Status::CANCELLED;
  });
  Client deaf(port(), 4096);
  deaf.Send(Chat(R"("stream": true)"));
  ASSERT_TRUE(deaf.ReadUntil("xxx"));
  const auto began = Clock::now();
  StopGateway(50ms);
  EXPECT_LT(Clock::now() - began, 5s);
}

}  // namespace
}  // namespace hearth::gateway
