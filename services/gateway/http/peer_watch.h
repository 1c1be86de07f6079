// Notices that a client has left while its request is being served.
//
// Reading is the only way to learn of it. A reset is final. An end of stream is not: a client may
// close its sending side and still wait for the answer (legal in HTTP/1.1), and looks just like one
// that closed the whole socket until something is sent to it. So an end of stream is answered by a
// few harmless bytes (an interim response, or a comment of the event stream), which a closed socket
// answers by a reset.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <chrono>
#include <functional>
#include <string_view>

namespace hearth::gateway {

namespace asio = boost::asio;

// Not thread-safe: used on the gateway's one thread.
class PeerWatch {
 public:
  // `buffer` keeps what a client sends ahead (its next requests). `probe` is the bytes to send
  // now, empty where none may be sent.
  PeerWatch(asio::ip::tcp::socket& socket, boost::beast::flat_buffer& buffer,
            std::function<std::string_view()> probe);

  // `on_gone` is called once, when the client has left.
  void Start(std::function<void()> on_gone);
  // Afterwards the socket may be read by others.
  asio::awaitable<void> Stop();

  bool is_gone() const { return is_gone_; }
  // The client sends no more. Asio tells this once only: a later read of the socket would wait.
  bool has_ended() const { return has_ended_; }
  // A write found the client gone.
  void SetGone();

 private:
  using Clock = std::chrono::steady_clock;

  void Read();
  void Probe();
  bool SocketIsDead() const;

  asio::ip::tcp::socket& socket_;
  boost::beast::flat_buffer& buffer_;
  const std::function<std::string_view()> probe_;
  std::function<void()> on_gone_;
  bool is_on_ = false;
  bool is_gone_ = false;
  bool has_ended_ = false;
  int n_pending_ = 0;  // handlers to come: of the read and of the probe's timer
  asio::cancellation_signal stop_read_;
  asio::steady_timer probe_timer_;
  asio::steady_timer stopped_;  // cancelled by the last pending handler
  Clock::time_point probed_at_{};
};

}  // namespace hearth::gateway
