// Writing: whole answers, event streams, and the end of a connection.
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/status.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "services/gateway/http/connection.h"

namespace hearth::gateway {
namespace {

constexpr std::chrono::seconds kLinger{1};
constexpr size_t kMaxLingerBytes = 1 << 20;
constexpr std::string_view kCommentChunk = "4\r\n: \n\n\r\n";
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

void AppendHeader(std::string_view name, std::string_view value, std::string* out) {
  out->append(name).append(": ").append(value).append("\r\n");
}

}  // namespace

asio::awaitable<bool> Connection::Write(std::string_view bytes) {
  if (bytes.empty()) co_return true;
  stream_.expires_after(services_.options.times.write);
  is_writing_ = true;
  const auto [error, n_bytes] =
      co_await asio::async_write(stream_, asio::buffer(bytes.data(), bytes.size()), kAwait);
  is_writing_ = false;
  stream_.expires_never();
  co_return !error;
}

asio::awaitable<bool> Connection::Send(const HttpResponse& response) {
  if (response.close || is_draining_) keep_alive_ = false;
  const std::string_view reason =
      View(http::obsolete_reason(http::int_to_status(static_cast<unsigned>(response.status))));
  std::string text = absl::StrCat("HTTP/1.1 ", response.status, " ", ToAbsl(reason), "\r\n");
  if (!response.content_type.empty()) AppendHeader("Content-Type", response.content_type, &text);
  if (response.status != 204) {
    AppendHeader("Content-Length", absl::StrCat(response.body.size()), &text);
  }
  AppendHeader("X-Request-Id", id_, &text);
  AppendHeader("X-Content-Type-Options", "nosniff", &text);
  AppendHeader("Connection", keep_alive_ ? "keep-alive" : "close", &text);
  for (const auto& headers : {response.headers, cors_}) {
    for (const auto& [name, value] : headers)
      AppendHeader(View(http::to_string(name)), value, &text);
  }
  text.append("\r\n");
  if (!is_head_) text.append(response.body);
  co_return co_await Write(text);
}

std::string Connection::EventStreamHead() const {
  std::string head = "HTTP/1.1 200 OK\r\n";
  AppendHeader("Content-Type", "text/event-stream; charset=utf-8", &head);
  AppendHeader("Cache-Control", "no-cache", &head);
  AppendHeader("X-Accel-Buffering", "no", &head);  // proxies pass every event on at once
  AppendHeader("X-Request-Id", id_, &head);
  AppendHeader("X-Content-Type-Options", "nosniff", &head);
  const bool is_chunked = request_.version() >= 11;
  if (is_chunked) AppendHeader("Transfer-Encoding", "chunked", &head);
  AppendHeader("Connection", keep_alive_ ? "keep-alive" : "close", &head);
  for (const auto& [name, value] : cors_) AppendHeader(View(http::to_string(name)), value, &head);
  return head.append("\r\n");
}

asio::awaitable<bool> Connection::SendEvents(std::string_view events) {
  std::string bytes;
  const bool is_chunked = request_.version() >= 11;
  if (!has_begun_) {
    // Without chunks the stream ends with the connection.
    keep_alive_ = keep_alive_ && is_chunked && !is_draining_;
    bytes = EventStreamHead();
  }
  if (is_chunked) absl::StrAppendFormat(&bytes, "%x\r\n", events.size());
  bytes.append(events);
  if (is_chunked) bytes.append("\r\n");
  has_begun_ = true;
  const bool is_sent = co_await Write(bytes);
  if (!is_sent) watch_.SetGone();
  co_return is_sent;
}

std::string_view Connection::ProbeBytes() const {
  if (is_writing_) return {};  // what is being written asks the same question
  const bool is_chunked = request_.version() >= 11;
  if (has_begun_) return is_chunked ? kCommentChunk : ": \n\n";
  return is_chunked ? "HTTP/1.1 102 Processing\r\n\r\n" : "";
}

// A client that is still sending when the socket closes may lose the answer to a reset: so what it
// sends is read for a moment.
asio::awaitable<void> Connection::Close() {
  if (!stream_.socket().is_open()) co_return;
  boost::system::error_code ignored;
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  size_t n_drained = 0;
  stream_.expires_after(kLinger);
  while (!ignored && n_drained < kMaxLingerBytes && !watch_.has_ended()) {
    buffer_.clear();
    const auto [error, n_bytes] =
        co_await stream_.async_read_some(buffer_.prepare(16 << 10), kAwait);
    if (error) break;
    n_drained += n_bytes;
  }
  stream_.close();
}

}  // namespace hearth::gateway
