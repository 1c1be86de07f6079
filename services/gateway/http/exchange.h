// One request and its answer, as the code that serves it sees them. The connection is behind it.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <functional>
#include <string>
#include <string_view>

#include "services/gateway/http/message.h"
#include "services/gateway/http/route.h"

namespace hearth::gateway {

namespace asio = boost::asio;

// Not thread-safe: used on the gateway's one thread.
class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual const HttpRequest& request() const = 0;
  virtual const std::string& id() const = 0;  // "x-request-id": in logs and in the answer

  // The client has left: nothing that is sent arrives.
  virtual bool client_is_gone() const = 0;
  // The server stops, and the time for this request is up.
  virtual bool must_end() const = 0;
  // Called when one of the two becomes true.
  virtual void OnEnd(std::function<void()> wake) = 0;

  // Sends a piece of an event stream; the first one sends the headers before it. False: the client
  // has left (or did not read for 30 s).
  virtual asio::awaitable<bool> SendEvents(std::string_view events) = 0;
  virtual bool has_begun() const = 0;  // headers of an event stream are sent
};

}  // namespace hearth::gateway
