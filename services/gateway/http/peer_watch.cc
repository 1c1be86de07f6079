#include "services/gateway/http/peer_watch.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

namespace hearth::gateway {
namespace {

constexpr size_t kReadBytes = 4096;
// What a client may send ahead of its answer; beyond it we stop reading and the kernel slows it
// down.
constexpr size_t kMaxAheadBytes = 64 << 10;
constexpr std::chrono::milliseconds kLook{10};
constexpr std::chrono::milliseconds kProbeAgain{1000};

}  // namespace

PeerWatch::PeerWatch(asio::ip::tcp::socket& socket, boost::beast::flat_buffer& buffer,
                     std::function<std::string_view()> probe)
    : socket_(socket),
      buffer_(buffer),
      probe_(std::move(probe)),
      probe_timer_(socket.get_executor()),
      stopped_(socket.get_executor(), Clock::time_point::max()) {}

void PeerWatch::Start(std::function<void()> on_gone) {
  on_gone_ = std::move(on_gone);
  is_on_ = true;
  probed_at_ = {};
  Read();
}

asio::awaitable<void> PeerWatch::Stop() {
  is_on_ = false;
  on_gone_ = nullptr;
  stop_read_.emit(asio::cancellation_type::terminal);
  probe_timer_.cancel();
  while (n_pending_ > 0) {
    co_await stopped_.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

void PeerWatch::SetGone() {
  if (is_gone_) return;
  is_gone_ = true;
  if (on_gone_) std::exchange(on_gone_, nullptr)();
}

void PeerWatch::Read() {
  // Where reading can't tell any more.
  if (has_ended_ || buffer_.size() >= kMaxAheadBytes) return Probe();
  ++n_pending_;
  socket_.async_read_some(
      buffer_.prepare(kReadBytes),
      asio::bind_cancellation_slot(stop_read_.slot(),
                                   [this](const boost::system::error_code& error, size_t n_bytes) {
                                     buffer_.commit(n_bytes);
                                     if (--n_pending_ == 0) stopped_.cancel();
                                     if (!is_on_ || error == asio::error::operation_aborted) return;
                                     if (!error) return Read();
                                     has_ended_ = error == asio::error::eof;
                                     if (has_ended_) return Probe();
                                     SetGone();
                                   }));
}

void PeerWatch::Probe() {
  if (!is_on_ || is_gone_) return;
  if (SocketIsDead()) return SetGone();
  const auto now = Clock::now();
  if (now - probed_at_ >= kProbeAgain) {
    const std::string_view bytes = probe_();
    const int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    if (!bytes.empty()) {
      const ssize_t n = ::send(socket_.native_handle(), bytes.data(), bytes.size(), flags);
      // Part of it would garble what follows; a full buffer answers the question just as well.
      if (n >= 0 && n != static_cast<ssize_t>(bytes.size())) return SetGone();
      probed_at_ = now;
      if (SocketIsDead()) return SetGone();  // on one machine the answer is there already
    }
  }
  ++n_pending_;
  probe_timer_.expires_after(kLook);
  probe_timer_.async_wait([this](const boost::system::error_code&) {
    if (--n_pending_ == 0) stopped_.cancel();
    Probe();
  });
}

bool PeerWatch::SocketIsDead() const {
  tcp_info info{};
  socklen_t size = sizeof(info);
  if (::getsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return true;
  return info.tcpi_state == TCP_CLOSE;
}

}  // namespace hearth::gateway
