// One HTTP/1.1 connection: reads requests one after the other, checks them, has them answered.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "services/gateway/http/exchange.h"
#include "services/gateway/http/parsers.h"
#include "services/gateway/http/peer_watch.h"
#include "services/gateway/http/services.h"

namespace hearth::gateway {

// Not thread-safe: used on the gateway's one thread. Must outlive Run().
class Connection final : private Exchange {
 public:
  Connection(Services& services, asio::ip::tcp::socket socket);

  // Returns when the connection is closed.
  asio::awaitable<void> Run();

  // Told to stop: closes a connection that waits for a request; others after their answer.
  void Drain();
  // The answer under way ends with an error event.
  void EndNow();
  // Closes the socket whatever is under way.
  void Abort();

 private:
  using Clock = std::chrono::steady_clock;
  using ReadResult = std::tuple<boost::system::error_code, size_t>;

  // Exchange.
  const HttpRequest& request() const override { return request_; }
  const std::string& id() const override { return id_; }
  bool client_is_gone() const override { return watch_.is_gone(); }
  bool must_end() const override { return must_end_; }
  void OnEnd(std::function<void()> wake) override { wake_ = std::move(wake); }
  asio::awaitable<bool> SendEvents(std::string_view events) override;
  bool has_begun() const override { return has_begun_; }

  // False: the connection is over.
  asio::awaitable<bool> ServeOne();
  asio::awaitable<bool> WaitForBytes();
  // The header is in the parser, or an answer says what is wrong with it; neither: closed.
  asio::awaitable<std::optional<HttpResponse>> ReadHeader(HeaderParser& parser);
  asio::awaitable<std::optional<HttpResponse>> ReadBody(HeaderParser& header, Gate::Ticket& ticket);
  // The result of a read that is given up at the deadline (beast::error::timeout), with the socket
  // left open for the answer that says so.
  asio::awaitable<ReadResult> Within(Clock::time_point deadline, asio::awaitable<ReadResult> read);
  // Everything that can be refused by the header alone.
  std::optional<HttpResponse> Refuse(const HttpHeader& header);
  std::optional<HttpResponse> RefuseMethod(const HttpHeader& header) const;
  std::optional<HttpResponse> RefuseBody(const HttpHeader& header) const;
  HttpResponse Preflight(const HttpHeader& header) const;
  asio::awaitable<std::optional<HttpResponse>> Answer();

  asio::awaitable<bool> Send(const HttpResponse& response);
  asio::awaitable<bool> Write(std::string_view bytes);
  std::string EventStreamHead() const;
  asio::awaitable<void> Close();
  std::string_view ProbeBytes() const;
  void Note(int status, Clock::time_point began);

  Services& services_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  PeerWatch watch_;
  std::function<void()> wake_;

  // Of the request under way.
  HttpRequest request_;
  std::string id_;
  std::optional<Route> route_;
  std::string model_;  // of /v1/models/ID
  std::vector<std::pair<http::field, std::string>> cors_;
  uint64_t content_length_ = 0;  // 0 where the request does not say
  bool is_head_ = false;
  bool keep_alive_ = false;
  bool has_begun_ = false;

  bool is_idle_ = false;
  bool is_draining_ = false;
  bool must_end_ = false;
  bool is_writing_ = false;
};

}  // namespace hearth::gateway
