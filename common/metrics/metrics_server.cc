#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/metrics/metrics.h"

namespace hearth {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

constexpr int kMaxConnections = 16;
constexpr auto kRequestTimeout = std::chrono::seconds(5);
constexpr size_t kMaxHeaderBytes = 8 << 10;

absl::StatusOr<tcp::endpoint> ParseEndpoint(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics address ", address, ": want HOST:PORT with a port of 0 to 65535"));
  }
  std::string host = address.substr(0, colon);
  if (host == "localhost") host = "127.0.0.1";
  beast::error_code error;
  const auto ip = asio::ip::make_address(host, error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics address ", address, ": the host must be an IP address"));
  }
  return tcp::endpoint(ip, static_cast<uint16_t>(port));
}

}  // namespace

// Everything runs on one thread; `n_sessions` needs no lock.
struct MetricsServer::Impl {
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  std::shared_ptr<prometheus::Registry> registry;
  std::function<void()> before_scrape;
  int n_sessions = 0;
  std::thread thread;

  struct Session;
  void Accept();
  http::response<http::string_body> Answer(const http::request<http::empty_body>& request);
};

// One request a connection: scrapes come every few seconds.
struct MetricsServer::Impl::Session : std::enable_shared_from_this<Session> {
  Session(Impl& server, tcp::socket socket) : server_(server), stream_(std::move(socket)) {
    ++server_.n_sessions;
    parser_.header_limit(kMaxHeaderBytes);
    parser_.body_limit(0);
  }
  ~Session() { --server_.n_sessions; }

  void Run() {
    stream_.expires_after(kRequestTimeout);
    http::async_read(stream_, buffer_, parser_,
                     [self = shared_from_this()](beast::error_code error, size_t) {
                       if (!error) self->Reply();
                     });
  }

  void Reply() {
    response_ = server_.Answer(parser_.get());
    http::async_write(stream_, response_, [self = shared_from_this()](beast::error_code, size_t) {
      beast::error_code ignored;
      self->stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    });
  }

  Impl& server_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_{kMaxHeaderBytes};
  http::request_parser<http::empty_body> parser_;
  http::response<http::string_body> response_;
};

void MetricsServer::Impl::Accept() {
  acceptor.async_accept([this](beast::error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted) return;
    if (!error && n_sessions < kMaxConnections) {
      std::make_shared<Session>(*this, std::move(socket))->Run();
    }
    Accept();
  });
}

http::response<http::string_body> MetricsServer::Impl::Answer(
    const http::request<http::empty_body>& request) {
  http::response<http::string_body> response(http::status::ok, request.version());
  response.keep_alive(false);
  response.set(http::field::content_type, "text/plain; charset=utf-8");
  if (request.method() != http::verb::get) {
    response.result(http::status::method_not_allowed);
    response.set(http::field::allow, "GET");
  } else if (request.target() == "/metrics") {
    if (before_scrape) before_scrape();
    response.set(http::field::content_type, "text/plain; version=0.0.4; charset=utf-8");
    response.body() = RenderMetrics(*registry);
  } else if (request.target() == "/health") {
    response.body() = "ok\n";
  } else {
    response.result(http::status::not_found);
    response.body() = "only /metrics and /health are here\n";
  }
  response.prepare_payload();
  return response;
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const std::string& address, std::shared_ptr<prometheus::Registry> registry,
    std::function<void()> before_scrape) {
  HEARTH_ASSIGN_OR_RETURN(const tcp::endpoint endpoint, ParseEndpoint(address));
  auto impl = std::make_unique<Impl>();
  impl->registry = std::move(registry);
  impl->before_scrape = std::move(before_scrape);
  beast::error_code error;
  impl->acceptor.open(endpoint.protocol(), error);
  if (!error) impl->acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) impl->acceptor.bind(endpoint, error);
  if (!error) impl->acceptor.listen(kMaxConnections, error);
  if (error) {
    return ErrnoStatus(error.value(), absl::StrCat("metrics address ", address));
  }
  impl->Accept();
  impl->thread = std::thread([raw = impl.get()] { raw->io.run(); });
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MetricsServer::~MetricsServer() {
  impl_->io.stop();
  impl_->thread.join();
}

int MetricsServer::port() const {
  beast::error_code ignored;
  return impl_->acceptor.local_endpoint(ignored).port();
}

}  // namespace hearth
