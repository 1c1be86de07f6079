#include "services/gateway/http/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/write.hpp>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"

namespace hearth::gateway {
namespace {

using asio::ip::tcp;

constexpr std::chrono::milliseconds kAcceptPause{50};
constexpr std::chrono::milliseconds kFarewell{500};  // for the error events at the end
constexpr std::chrono::milliseconds kLookAgain{5};
constexpr int kMaxTurnedAway = 64;
constexpr unsigned kUserTimeoutMs = 30'000;  // then a peer that acknowledges nothing is gone
constexpr unsigned kKeepAliveSeconds = 10;
constexpr int kSendBufferBytes = 128 << 10;  // the kernel doubles it
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

std::string ListenAdvice(const boost::system::error_code& error) {
  if (error == asio::error::address_in_use) {
    return "; another program listens there: stop it or choose another port (0: any free one)";
  }
  if (error == asio::error::access_denied) return "; ports below 1024 need rights: choose another";
  return "; choose an address of this machine";
}

void SetOptions(tcp::socket& socket) {
  boost::system::error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
  socket.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
  const auto set = [&](int name, unsigned value) {
    ::setsockopt(socket.native_handle(), IPPROTO_TCP, name, &value, sizeof(value));
  };
  set(TCP_USER_TIMEOUT, kUserTimeoutMs);
  // A peer that vanished without a word is asked too while there is nothing to send to it.
  set(TCP_KEEPIDLE, kKeepAliveSeconds);
  set(TCP_KEEPINTVL, kKeepAliveSeconds);
}

void LogEscaped(const std::exception_ptr& error) {
  if (!error) return;
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& exception) {
    LogError("a connection ended by an exception", {{"reason", exception.what()}});
  }
}

absl::StatusOr<tcp::endpoint> Resolve(asio::io_context& io, const std::string& host, int port) {
  boost::system::error_code error;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(host, std::to_string(port), tcp::resolver::passive, error);
  if (!error && !found.empty()) return found.begin()->endpoint();
  return absl::FailedPreconditionError(
      absl::StrCat("cannot listen on '", host, "': ", error.message(),
                   "; --listen takes HOST:PORT with an address or name of this machine"));
}

}  // namespace

Server::Server(asio::io_context& io, Services& services)
    : io_(io),
      services_(services),
      acceptor_(io),
      changed_(io, std::chrono::steady_clock::time_point::max()) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Listen(asio::io_context& io, Services& services) {
  const std::string& host = services.options.host;
  auto endpoint = Resolve(io, host, services.options.port);
  if (!endpoint.ok()) return endpoint.status();
  std::unique_ptr<Server> server(new Server(io, services));
  tcp::acceptor& acceptor = server->acceptor_;
  boost::system::error_code error;
  acceptor.open(endpoint->protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(*endpoint, error);
  if (!error) acceptor.listen(1024, error);
  if (error) {
    return absl::FailedPreconditionError(absl::StrCat("cannot listen on ", host, ":",
                                                      services.options.port, ": ", error.message(),
                                                      ListenAdvice(error)));
  }
  server->port_ = acceptor.local_endpoint(error).port();
  return server;
}

void Server::Start() { asio::co_spawn(io_, Accept(), LogEscaped); }

asio::awaitable<void> Server::Accept() {
  asio::steady_timer pause(io_);
  while (acceptor_.is_open()) {
    auto [error, socket] = co_await acceptor_.async_accept(kAwait);
    if (!acceptor_.is_open()) break;
    if (error) {
      // Out of descriptors or memory: others give some back soon.
      LogWarning("accept failed", {{"reason", error.message()}});
      pause.expires_after(kAcceptPause);
      co_await pause.async_wait(kAwait);
      continue;
    }
    SetOptions(socket);
    const bool fits = services_.connections.used() < services_.connections.limit();
    if (fits) {
      asio::co_spawn(io_, Serve(std::move(socket)), LogEscaped);
    } else {
      services_.metrics.Rejected("connections");
      if (n_turned_away_ < kMaxTurnedAway) {
        asio::co_spawn(io_, TurnAway(std::move(socket)), LogEscaped);
      }
    }
  }
}

asio::awaitable<void> Server::Serve(tcp::socket socket) {
  const auto ticket = services_.connections.TryEnter();
  if (!ticket) co_return;
  Connection connection(services_, std::move(socket));
  connections_.insert(&connection);
  services_.metrics.open_connections().Increment();
  if (services_.is_draining) connection.Drain();
  try {
    co_await connection.Run();
  } catch (const std::exception& exception) {
    LogError("a connection ended by an exception", {{"reason", exception.what()}});
  }
  services_.metrics.open_connections().Decrement();
  connections_.erase(&connection);
  changed_.cancel();
}

// More than the limit: told so, not left waiting.
asio::awaitable<void> Server::TurnAway(tcp::socket socket) {
  ++n_turned_away_;
  beast::tcp_stream stream(std::move(socket));
  stream.expires_after(std::chrono::seconds(1));
  const std::string body =
      ErrorBody({503, "the server has as many connections as it may; try again in a moment"});
  const std::string text = absl::StrCat(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: "
      "1\r\nConnection: close\r\nContent-Length: ",
      body.size(), "\r\n\r\n", body);
  co_await asio::async_write(stream, asio::buffer(text), kAwait);
  boost::system::error_code ignored;
  stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
  // Its request is read away, or the answer would be lost to a reset.
  std::string sink(4096, '\0');
  while (true) {
    const auto [error, n_bytes] = co_await stream.async_read_some(asio::buffer(sink), kAwait);
    if (error) break;
  }
  --n_turned_away_;
}

asio::awaitable<void> Server::WaitUntilIdle(std::chrono::milliseconds most) {
  const auto end = std::chrono::steady_clock::now() + most;
  while (!connections_.empty() && std::chrono::steady_clock::now() < end) {
    changed_.expires_at(end);
    co_await changed_.async_wait(kAwait);
  }
}

asio::awaitable<void> Server::Drain(std::chrono::milliseconds grace) {
  services_.is_draining = true;
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  // A copy: a connection may end while it is told.
  for (Connection* connection : std::vector(connections_.begin(), connections_.end())) {
    connection->Drain();
  }
  co_await WaitUntilIdle(grace);
  for (Connection* connection : std::vector(connections_.begin(), connections_.end())) {
    connection->EndNow();
  }
  co_await WaitUntilIdle(kFarewell);
  for (Connection* connection : std::vector(connections_.begin(), connections_.end())) {
    connection->Abort();
  }
  co_await WaitUntilIdle(kFarewell);
}

asio::awaitable<void> ShutDown(Server& server, Worker& worker, std::chrono::milliseconds grace) {
  co_await server.Drain(grace);
  worker.Stop();
  worker.calls().CancelAll();
  asio::steady_timer timer(co_await asio::this_coro::executor);
  while (!worker.calls().is_empty() || !server.is_idle()) {
    timer.expires_after(kLookAgain);
    co_await timer.async_wait(kAwait);
  }
}

}  // namespace hearth::gateway
