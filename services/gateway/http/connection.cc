// Reading and dispatch. Writing is in connection_write.cc, what is refused in connection_refuse.cc.
#include "services/gateway/http/connection.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/beast/http/read.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "services/gateway/api/request.h"
#include "services/gateway/http/generation.h"
#include "services/gateway/http/pages.h"
#include "services/gateway/http/request_id.h"

namespace hearth::gateway {
namespace {

constexpr int64_t kBodyBytesPerSecond = 1024;  // more time for what comes at least so fast
constexpr size_t kReadBytes = 16 << 10;
constexpr int kMaxJsonDepth = 64;
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

HttpResponse Closing(ApiError error) {
  HttpResponse response = ErrorResponse(error);
  response.close = true;
  return response;
}

HttpResponse BadHttp(const boost::system::error_code& error) {
  if (error == http::error::header_limit) {
    return Closing({431, absl::StrCat("the request's header is longer than ", kMaxHeaderBytes,
                                      " bytes, the limit")});
  }
  if (error == beast::error::timeout) {
    return Closing({408, "the request did not arrive in time"});
  }
  if (error == http::error::bad_chunk_extension || error == http::error::buffer_overflow) {
    return Closing({400,
                    "the chunked body has chunk extensions or trailers, which this server "
                    "does not take"});
  }
  return Closing({400, absl::StrCat("the request is no valid HTTP/1.1: ", error.message())});
}

bool IsClosed(const boost::system::error_code& error) {
  return error == http::error::end_of_stream || error == http::error::partial_message ||
         error == asio::error::eof || error == asio::error::connection_reset ||
         error == asio::error::operation_aborted || error == asio::error::bad_descriptor;
}

}  // namespace

Connection::Connection(Services& services, asio::ip::tcp::socket socket)
    : services_(services),
      stream_(std::move(socket)),
      buffer_(kMaxBufferedBytes),
      watch_(stream_.socket(), buffer_, [this] { return ProbeBytes(); }) {}

void Connection::Drain() {
  is_draining_ = true;
  if (is_idle_) Abort();
}

void Connection::EndNow() {
  must_end_ = true;
  if (wake_) wake_();
}

void Connection::Abort() { stream_.close(); }

asio::awaitable<void> Connection::Run() {
  bool goes_on = true;
  while (goes_on) goes_on = co_await ServeOne();
  co_await Close();
}

asio::awaitable<bool> Connection::WaitForBytes() {
  if (buffer_.size() > 0) co_return true;
  if (watch_.has_ended()) co_return false;
  is_idle_ = true;
  stream_.expires_after(services_.options.times.idle);
  const auto [error, n_bytes] =
      co_await stream_.async_read_some(buffer_.prepare(kReadBytes), kAwait);
  is_idle_ = false;
  stream_.expires_never();
  buffer_.commit(n_bytes);
  co_return !error;
}

asio::awaitable<bool> Connection::ServeOne() {
  if (is_draining_) co_return false;
  const bool has_bytes = co_await WaitForBytes();
  if (!has_bytes) co_return false;
  const auto began = Clock::now();
  request_ = {};
  route_.reset();
  cors_.clear();
  has_begun_ = is_head_ = keep_alive_ = false;
  id_ = NewRequestId();

  HeaderParser parser;
  Gate::Ticket body_ticket;
  std::optional<HttpResponse> response = co_await ReadHeader(parser);
  if (!response && !parser.is_header_done()) co_return false;
  if (!response) {
    id_ = RequestIdOf(parser.get());
    cors_ = services_.guard.CorsHeaders(parser.get());
    is_head_ = parser.get().method() == http::verb::head;
    keep_alive_ = parser.get().keep_alive();
    content_length_ = parser.content_length() ? *parser.content_length() : 0;
    response = Refuse(parser.get());
    if (response) response->close = response->close || !parser.is_done();
  }
  if (!response) response = co_await ReadBody(parser, body_ticket);
  if (!response) {
    watch_.Start([this] {
      if (wake_) wake_();
    });
    response = co_await Answer();
    wake_ = nullptr;
    co_await watch_.Stop();
  }
  if (watch_.is_gone()) {
    services_.metrics.client_disconnects().Increment();
    Note(499, began);
    co_return false;
  }
  if (!response) {
    Note(200, began);
    const bool is_ended = co_await Write(request_.version() >= 11 ? "0\r\n\r\n" : "");
    co_return is_ended&& keep_alive_;
  }
  Note(response->status, began);
  const bool is_sent = co_await Send(*response);
  co_return is_sent&& keep_alive_;
}

asio::awaitable<Connection::ReadResult> Connection::Within(Clock::time_point deadline,
                                                           asio::awaitable<ReadResult> read) {
  using asio::experimental::awaitable_operators::operator||;
  asio::steady_timer timer(stream_.get_executor(), deadline);
  const auto first = co_await (std::move(read) || timer.async_wait(kAwait));
  if (const ReadResult* result = std::get_if<0>(&first)) co_return *result;
  co_return ReadResult(beast::error::timeout, 0);
}

asio::awaitable<std::optional<HttpResponse>> Connection::ReadHeader(HeaderParser& parser) {
  Limit(parser);
  const auto [error, n_bytes] =
      co_await Within(Clock::now() + services_.options.times.header,
                      http::async_read_header(stream_, buffer_, parser, kAwait));
  if (!error) co_return std::nullopt;
  if (IsClosed(error)) co_return std::nullopt;
  co_return BadHttp(error);
}

asio::awaitable<std::optional<HttpResponse>> Connection::ReadBody(HeaderParser& header,
                                                                  Gate::Ticket& ticket) {
  auto entered = services_.bodies.TryEnter(static_cast<int64_t>(content_length_));
  if (!entered) {
    services_.metrics.Rejected("bodies");
    co_return Closing({503, "the server reads as many bytes of requests as it may; try again"});
  }
  ticket = std::move(*entered);
  if (beast::iequals(header.get()[http::field::expect], "100-continue")) {
    const bool is_sent = co_await Write("HTTP/1.1 100 Continue\r\n\r\n");
    if (!is_sent) co_return Closing({400, "the client has left"});
  }
  const auto began = Clock::now();
  BodyParser parser(std::move(header));
  const auto limit = static_cast<uint64_t>(services_.options.max_body_bytes);
  parser.body_limit(limit);
  RefuseExtensions refuse_extensions;
  parser.on_chunk_header(refuse_extensions);
  while (parser.chunked() && buffer_.size() < kLeastChunkedBody) {
    const auto [error, n_bytes] =
        co_await Within(began + services_.options.times.body,
                        stream_.async_read_some(buffer_.prepare(kReadBytes), kAwait));
    if (error) co_return BadHttp(error);
    buffer_.commit(n_bytes);
  }
  int64_t n_read = 0, n_charged = static_cast<int64_t>(content_length_);
  while (!parser.is_done()) {
    const auto deadline =
        began + services_.options.times.body + std::chrono::seconds(n_read / kBodyBytesPerSecond);
    const auto [error, n_bytes] =
        co_await Within(deadline, http::async_read_some(stream_, buffer_, parser, kAwait));
    if (error == http::error::body_limit) {
      co_return Closing(
          {413, absl::StrCat("the request's body is longer than ", limit, " bytes, the limit")});
    }
    if (error) co_return BadHttp(error);
    n_read += static_cast<int64_t>(n_bytes);
    // A chunked body pays as it comes.
    const int64_t unpaid = static_cast<int64_t>(parser.get().body().size()) - n_charged;
    if (unpaid > 0 && !ticket.Grow(unpaid)) {
      services_.metrics.Rejected("bodies");
      co_return Closing({503, "the server reads as many bytes of requests as it may; try again"});
    }
    n_charged += std::max<int64_t>(0, unpaid);
  }
  request_ = parser.release();
  co_return std::nullopt;
}

asio::awaitable<std::optional<HttpResponse>> Connection::Answer() {
  if (route_->page) co_return co_await ServePage(services_, *route_->page, model_);
  const auto body = ParseJson(request_.body(), kMaxJsonDepth);
  if (!body.ok()) {
    co_return ErrorResponse(absl::InvalidArgumentError(
        absl::StrCat("the request's body is no valid JSON: ", body.status().message())));
  }
  const absl::Status checked = CheckFields(*body, *route_->endpoint);
  if (!checked.ok()) co_return ErrorResponse(checked);
  const json::object& object = body->get_object();
  if (*route_->endpoint != kChat && *route_->endpoint != kCompletion) {
    co_return co_await ServeHelper(services_, *route_->endpoint, object);
  }
  const auto generation = *route_->endpoint == kChat ? ParseChat(object) : ParseCompletion(object);
  if (!generation.ok()) co_return ErrorResponse(generation.status());
  co_return co_await ServeGeneration(services_, *this, *generation);
}

void Connection::Note(int status, Clock::time_point began) {
  const auto duration = Clock::now() - began;
  const std::string_view path = route_ ? route_->pattern : "other";
  const std::string method =
      request_.method() == http::verb::unknown ? "other" : std::string(request_.method_string());
  services_.metrics.Request(path, method, status, duration);
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
  const bool is_quiet = route_ && route_->page;  // probes come every second
  Log(is_quiet ? LogLevel::kDebug : LogLevel::kInfo, "request",
      {{"request_id", id_}, {"path", path}, {"status", status}, {"ms", ms}});
}

}  // namespace hearth::gateway
