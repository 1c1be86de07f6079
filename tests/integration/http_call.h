// One HTTP request of a test to a running gateway, read as far as the test wants. Remembers every
// error that any client of the test program saw, for ExpectNoSecretsInErrors().
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace hearth::testing {

struct HttpRequest {
  std::string method = "POST";
  std::string path = "/v1/chat/completions";
  std::string body = "";
  std::string content_type = "application/json";
};

// Belongs to one thread. The destructor closes the connection.
class HttpCall {
 public:
  // Connects and sends at once, on a connection of its own.
  HttpCall(int port, const HttpRequest& request);
  ~HttpCall();
  HttpCall(const HttpCall&) = delete;
  HttpCall& operator=(const HttpCall&) = delete;

  // Reads until `condition` holds, the answer ends or the time is over. Whether the condition
  // holds.
  bool ReadUntil(const std::function<bool()>& condition, std::chrono::milliseconds timeout);
  // Whether the answer came completely.
  bool ReadAll(std::chrono::milliseconds timeout);
  // Closes the connection without reading on.
  void Drop();

  bool has_header() const { return parser_.is_header_done(); }
  int status() const { return has_header() ? static_cast<int>(parser_.get().result_int()) : 0; }
  std::string header(std::string_view name) const;
  const std::string& body() const { return parser_.get().body(); }
  bool is_complete() const { return parser_.is_done(); }
  // Refused, reset or closed before the answer's end.
  bool is_broken() const { return error_.failed() && !is_complete(); }

 private:
  void ReadSome(std::chrono::milliseconds timeout);
  void Note();

  boost::asio::io_context io_;
  boost::beast::tcp_stream stream_{io_};
  boost::beast::flat_buffer buffer_;
  boost::beast::http::response_parser<boost::beast::http::string_body> parser_;
  boost::beast::error_code error_;
  bool is_reading_ = false, is_noted_ = false;
};

// Adds what a client saw as an error: a body or a stream's event. Thread-safe.
void RememberError(std::string_view text);
// All of them, each once.
std::vector<std::string> RememberedErrors();
// Fails the test if one of them names a path, an address, a socket or the segment, or any of
// `secrets`.
void ExpectNoSecretsInErrors(const std::vector<std::string>& secrets);

}  // namespace hearth::testing
