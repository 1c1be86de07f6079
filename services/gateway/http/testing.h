// The gateway's server before a scripted worker, and raw HTTP clients, for tests of this folder.
#pragma once

#include <poll.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/read.hpp>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/rpc/server.h"
#include "common/testing/status_matchers.h"
#include "services/gateway/http/server.h"

namespace hearth::gateway::testing {

using namespace std::chrono_literals;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;

inline constexpr auto kDeadline = 20s;

// True once `condition` holds.
template <typename Condition>
bool Eventually(Condition condition, Clock::duration within = kDeadline) {
  const auto deadline = Clock::now() + within;
  while (!condition()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

// A worker that does what the test says. Thread-safe.
class ScriptedWorker final : public v1::Inference::Service {
 public:
  using Writer = grpc::ServerWriter<v1::GenerateEvent>;
  using Script =
      std::function<grpc::Status(grpc::ServerContext&, const v1::GenerateRequest&, Writer&)>;

  ScriptedWorker() {
    status_.set_state(v1::WORKER_STATE_READY);
    status_.set_ms_since_last_token(1);
    model_.set_id("demo");
    model_.set_created(77);
    model_.set_context_tokens(2048);
    script_ = Say({"Hel", "lo"});
  }

  void SetScript(Script script) {
    const std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }
  void SetStatus(const v1::WorkerStatus& status) {
    const std::lock_guard lock(mutex_);
    status_ = status;
  }
  std::vector<v1::GenerateRequest> requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  int n_cancelled() const { return n_cancelled_; }
  int n_running() const { return n_running_; }

  static v1::GenerateEvent Started() {
    v1::GenerateEvent event;
    event.mutable_started()->set_prompt_tokens(3);
    return event;
  }
  static v1::GenerateEvent Text(const std::string& text) {
    v1::GenerateEvent event;
    event.mutable_delta()->set_text(text);
    return event;
  }
  static v1::GenerateEvent Finished(int completion_tokens) {
    v1::GenerateEvent event;
    event.mutable_finish()->set_reason(v1::FINISH_REASON_STOP);
    event.mutable_finish()->set_prompt_tokens(3);
    event.mutable_finish()->set_completion_tokens(completion_tokens);
    return event;
  }
  // A whole answer.
  static Script Say(std::vector<std::string> texts) {
    return [texts = std::move(texts)](auto&, const auto&, Writer& writer) {
      writer.Write(Started());
      for (const std::string& text : texts) writer.Write(Text(text));
      writer.Write(Finished(static_cast<int>(texts.size())));
      return grpc::Status::OK;
    };
  }
  static Script Fail(grpc::StatusCode code, const std::string& message) {
    return [=](auto&, const auto&, Writer&) { return grpc::Status(code, message); };
  }
  // These events, then nothing until the call is cancelled.
  static Script Hang(std::vector<v1::GenerateEvent> events) {
    return [events = std::move(events)](grpc::ServerContext& context, const auto&, Writer& writer) {
      for (const auto& event : events) writer.Write(event);
      WaitForCancel(context);
      return grpc::Status::CANCELLED;
    };
  }
  static void WaitForCancel(const grpc::ServerContext& context) {
    std::mutex mutex;
    std::condition_variable never;
    std::unique_lock lock(mutex);
    while (!context.IsCancelled()) never.wait_for(lock, 1ms);
  }

 private:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        Writer* writer) override {
    Script script;
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(*request);
      script = script_;
    }
    ++n_running_;
    const grpc::Status status = script(*context, *request, *writer);
    if (context->IsCancelled()) ++n_cancelled_;
    --n_running_;
    return status;
  }
  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                         v1::WorkerStatus* response) override {
    const std::lock_guard lock(mutex_);
    *response = status_;
    return grpc::Status::OK;
  }
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                        v1::ModelInfo* response) override {
    *response = model_;
    return grpc::Status::OK;
  }
  // Bytes as ids, and back.
  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    for (const char c : request->text()) response->add_ids(static_cast<unsigned char>(c));
    return grpc::Status::OK;
  }
  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    for (const int32_t id : request->ids()) {
      if (id > 127) return {grpc::StatusCode::INVALID_ARGUMENT, "tokens: out of the vocabulary"};
      response->mutable_text()->push_back(static_cast<char>(id));
    }
    return grpc::Status::OK;
  }
  grpc::Status ApplyTemplate(grpc::ServerContext*, const v1::ApplyTemplateRequest* request,
                             v1::ApplyTemplateResponse* response) override {
    for (const auto& message : request->chat().messages()) {
      absl::StrAppend(response->mutable_text(), message.role(), ":", message.content());
    }
    return grpc::Status::OK;
  }

  std::mutex mutex_;
  Script script_;
  v1::WorkerStatus status_;
  v1::ModelInfo model_;
  std::vector<v1::GenerateRequest> requests_;
  std::atomic<int> n_cancelled_ = 0, n_running_ = 0;
};

using Response = http::response<http::string_body>;

// Bytes that are waited for until a deadline, which Asio's own blocking reads do not have.
class TimedReads {
 public:
  explicit TimedReads(tcp::socket& socket) : socket_(socket) {}
  template <typename Buffers>
  size_t read_some(const Buffers& buffers, boost::system::error_code& error) {
    pollfd polled{socket_.native_handle(), POLLIN, 0};
    if (::poll(&polled, 1, static_cast<int>(kDeadline / 1ms)) != 1) {
      error = asio::error::timed_out;
      return 0;
    }
    return socket_.read_some(buffers, error);
  }
  template <typename Buffers>
  size_t read_some(const Buffers& buffers) {
    boost::system::error_code error;
    return read_some(buffers, error);
  }

 private:
  tcp::socket& socket_;
};

// A blocking client that writes bytes as the test says. Every read has a deadline.
class Client {
 public:
  explicit Client(int port, int receive_buffer_bytes = 0) : socket_(io_) {
    socket_.open(tcp::v4());
    if (receive_buffer_bytes > 0) {
      socket_.set_option(asio::socket_base::receive_buffer_size(receive_buffer_bytes));
    }
    socket_.connect(
        tcp::endpoint(asio::ip::address_v4::loopback(), static_cast<unsigned short>(port)), error_);
  }

  bool is_connected() const { return !error_; }
  // False where the server has closed.
  bool Send(std::string_view bytes) {
    boost::system::error_code error;
    asio::write(socket_, asio::buffer(bytes.data(), bytes.size()), error);
    return !error;
  }
  // The next whole answer; interim ones are counted. Status 0: the connection ended or was silent.
  Response Read(bool is_head = false) {
    while (true) {
      http::response_parser<http::string_body> parser;
      parser.body_limit(64 << 20);
      parser.skip(is_head);
      boost::system::error_code error;
      http::read(reads_, buffer_, parser, error);
      if (error) return Response(http::int_to_status(0), 11);
      if (parser.get().result_int() >= 200) return parser.release();
      ++n_interim_;
    }
  }
  // Whether `text` comes; what has come stays to be read.
  bool ReadUntil(std::string_view text) {
    while (Peek().find(text) == std::string_view::npos) {
      boost::system::error_code error;
      const size_t n = reads_.read_some(buffer_.prepare(4096), error);
      if (error) return false;
      buffer_.commit(n);
    }
    return true;
  }
  // Everything until the server closes; nothing where it doesn't.
  std::optional<std::string> ReadToEnd() {
    boost::system::error_code error;
    while (!error) buffer_.commit(reads_.read_some(buffer_.prepare(4096), error));
    if (error != asio::error::eof && error != asio::error::connection_reset) return std::nullopt;
    return std::string(Peek());
  }
  std::string_view Peek() const {
    return {static_cast<const char*>(buffer_.data().data()), buffer_.size()};
  }

  void Reset() {
    socket_.set_option(asio::socket_base::linger(true, 0));
    socket_.close();
  }
  void Close() { socket_.close(); }
  void HalfClose() { socket_.shutdown(tcp::socket::shutdown_send); }
  int n_interim() const { return n_interim_; }

 private:
  asio::io_context io_;
  tcp::socket socket_;
  TimedReads reads_{socket_};
  boost::system::error_code error_;
  beast::flat_buffer buffer_;
  int n_interim_ = 0;
};

inline std::string Get(std::string_view path, std::string_view more = "") {
  return absl::StrCat("GET ", ToAbsl(path), " HTTP/1.1\r\nHost: localhost\r\n", ToAbsl(more),
                      "\r\n");
}
inline std::string Post(std::string_view path, std::string_view body, std::string_view more = "") {
  return absl::StrCat("POST ", ToAbsl(path),
                      " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                      "Content-Length: ",
                      body.size(), "\r\n", ToAbsl(more), "\r\n", ToAbsl(body));
}
inline constexpr std::string_view kChatPath = "/v1/chat/completions";
inline std::string ChatBody(std::string_view more = "") {
  return absl::StrCat(R"({"messages": [{"role": "user", "content": "hi"}])",
                      more.empty() ? "" : ", ", ToAbsl(more), "}");
}
inline std::string Chat(std::string_view more = "") { return Post(kChatPath, ChatBody(more)); }

// {"error": {...}} of an answer, which has exactly OpenAI's four members.
inline json::object ErrorOf(const Response& response) {
  const auto body = ParseJson(response.body());
  EXPECT_TRUE(body.ok()) << response.result_int() << " " << response.body();
  if (!body.ok()) return {};
  EXPECT_EQ(response[http::field::content_type], "application/json");
  const json::object& error = body->at("error").get_object();
  EXPECT_EQ(error.size(), 4u);
  for (const char* member : {"message", "type", "param", "code"}) {
    EXPECT_TRUE(error.contains(member)) << member;
  }
  return error;
}

class GatewayTest : public ::testing::Test {
 protected:
  ~GatewayTest() override {
    StopGateway(0ms);
    rpc_.reset();
    std::filesystem::remove_all(folder_);
  }

  void StartWorker() {
    ASSERT_OK_AND_ASSIGN(rpc_, RpcServer::Start({.address = Address()}, {&worker_}));
  }
  void StopWorker() { rpc_.reset(); }
  // With a worker that is known already.
  void Start(GatewayOptions options = {}, Guard guard = *Guard::Create({}, {}, "")) {
    StartWorker();
    StartGateway(options, std::move(guard));
    ASSERT_TRUE(Eventually([&] { return Ask(Get("/v1/models")).result_int() == 200; }));
  }
  void StartGateway(GatewayOptions options, Guard guard = *Guard::Create({}, {}, "")) {
    options.port = 0;
    upstream_ = std::make_unique<Worker>(io_, Address());
    services_ = std::make_unique<Services>(options, std::move(guard), *upstream_);
    ASSERT_OK_AND_ASSIGN(server_, Server::Listen(io_, *services_));
    upstream_->Start();
    server_->Start();
    thread_ = std::thread([this] { io_.run(); });
  }
  // What SIGTERM does; returns when it is done.
  void StopGateway(std::chrono::milliseconds grace) {
    BeginStop(grace);
    if (thread_.joinable()) thread_.join();
  }
  void BeginStop(std::chrono::milliseconds grace) {
    if (server_ == nullptr || std::exchange(is_stopping_, true)) return;
    const auto stop = [this, grace]() -> asio::awaitable<void> {
      co_await ShutDown(*server_, *upstream_, grace);
      io_.stop();
    };
    asio::co_spawn(io_, stop, asio::detached);
  }

  int port() const { return server_->port(); }
  Response Ask(std::string_view bytes) {
    Client client(port());
    client.Send(bytes);
    return client.Read();
  }
  // A metric's value; nothing where it is absent.
  std::optional<double> Metric(const std::string& name) {
    const std::string text = Ask(Get("/metrics")).body();
    const size_t at = text.find(absl::StrCat("\n", name, " "));
    if (at == std::string::npos) return std::nullopt;
    return std::stod(text.substr(at + name.size() + 2));
  }

  ScriptedWorker worker_;

 private:
  std::string Address() const { return absl::StrCat("unix:", folder_.string(), "/worker.sock"); }

  const std::filesystem::path folder_ = [] {
    std::string name = "/tmp/hearth-gateway-test-XXXXXX";
    return std::filesystem::path(::mkdtemp(name.data()));
  }();
  std::unique_ptr<RpcServer> rpc_;
  asio::io_context io_{1};
  std::unique_ptr<Worker> upstream_;
  std::unique_ptr<Services> services_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
  bool is_stopping_ = false;
};

}  // namespace hearth::gateway::testing
