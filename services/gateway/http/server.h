// Listens, accepts, and knows all connections.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <set>

#include "absl/status/statusor.h"
#include "services/gateway/http/connection.h"
#include "services/gateway/http/services.h"

namespace hearth::gateway {

// Used on the io_context's one thread.
class Server {
 public:
  // FailedPrecondition "port in use" and the like, with what to do.
  static absl::StatusOr<std::unique_ptr<Server>> Listen(asio::io_context& io, Services& services);

  int port() const { return port_; }
  void Start();

  // Refuses new connections and requests, waits for those under way, ends them with an error event
  // when the time is up, and closes what is left.
  asio::awaitable<void> Drain(std::chrono::milliseconds grace);
  bool is_idle() const { return connections_.empty(); }

 private:
  Server(asio::io_context& io, Services& services);
  asio::awaitable<void> Accept();
  asio::awaitable<void> Serve(asio::ip::tcp::socket socket);
  asio::awaitable<void> TurnAway(asio::ip::tcp::socket socket);
  asio::awaitable<void> WaitUntilIdle(std::chrono::milliseconds most);

  asio::io_context& io_;
  Services& services_;
  asio::ip::tcp::acceptor acceptor_;
  int port_ = 0;
  std::set<Connection*> connections_;
  int n_turned_away_ = 0;       // being told so
  asio::steady_timer changed_;  // cancelled when a connection has ended
};

// Drains, cancels every call to the worker, and returns when nothing refers to the two any more:
// then they, and the io_context, may go.
asio::awaitable<void> ShutDown(Server& server, Worker& worker, std::chrono::milliseconds grace);

}  // namespace hearth::gateway
