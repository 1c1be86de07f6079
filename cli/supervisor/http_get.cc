#include "cli/supervisor/http_get.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include "absl/strings/str_cat.h"

namespace hearth::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr uint64_t kMaxBody = 64 << 10;

// The steps of one exchange, each started by the end of the one before.
struct Exchange {
  asio::io_context context;
  asio::ip::tcp::resolver resolver{context};
  beast::tcp_stream stream{context};
  beast::flat_buffer buffer;
  http::request<http::empty_body> request;
  http::response_parser<http::string_body> parser;
  beast::error_code error;
  bool is_done = false;

  void Begin(const std::string& host, int port) {
    resolver.async_resolve(host, absl::StrCat(port), [this](beast::error_code e, auto endpoints) {
      if (Failed(e)) return;
      stream.async_connect(endpoints, [this](beast::error_code e2, const auto&) { Send(e2); });
    });
  }
  void Send(beast::error_code e) {
    if (Failed(e)) return;
    http::async_write(stream, request, [this](beast::error_code e2, size_t) {
      if (Failed(e2)) return;
      http::async_read(stream, buffer, parser, [this](beast::error_code e3, size_t) {
        if (!Failed(e3)) is_done = true;
      });
    });
  }
  bool Failed(beast::error_code e) {
    if (e) error = e;
    return static_cast<bool>(e);
  }
};

}  // namespace

absl::StatusOr<HttpAnswer> HttpGet(const std::string& host, int port, const std::string& path,
                                   std::chrono::milliseconds timeout) {
  Exchange exchange;
  exchange.request.method(http::verb::get);
  exchange.request.target(path);
  exchange.request.version(11);
  exchange.request.set(http::field::host, absl::StrCat("localhost:", port));
  exchange.request.set(http::field::connection, "close");
  exchange.parser.body_limit(kMaxBody);
  exchange.Begin(host, port);
  exchange.context.run_for(timeout);
  const std::string where = absl::StrCat("http://", host, ":", port, path);
  if (exchange.error) {
    return absl::UnavailableError(absl::StrCat(where, ": ", exchange.error.message()));
  }
  if (!exchange.is_done) {
    return absl::DeadlineExceededError(
        absl::StrCat(where, ": no answer within ", timeout.count(), " ms"));
  }
  HttpAnswer answer;
  answer.status = static_cast<int>(exchange.parser.get().result_int());
  answer.body = exchange.parser.get().body();
  return answer;
}

}  // namespace hearth::cli
