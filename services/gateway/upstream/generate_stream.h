// One Generate call to the worker: events come out on the gateway's thread, no faster than they are
// taken.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "hearth/v1/inference.grpc.pb.h"
#include "services/gateway/upstream/call.h"

namespace hearth::gateway {

// All methods and the callback: on the gateway's thread.
class GenerateStream {
 public:
  // `on_change` is called when an event has come or the call has ended, never after the stream's
  // destruction.
  GenerateStream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                 std::chrono::milliseconds timeout, const asio::any_io_executor& executor,
                 CallRegistry& calls, std::function<void()> on_change);
  // Cancels what still runs; the worker ends the sequence at its next step.
  ~GenerateStream();
  GenerateStream(const GenerateStream&) = delete;
  GenerateStream& operator=(const GenerateStream&) = delete;

  // The next event, where one has come.
  std::optional<v1::GenerateEvent> Next();
  // How the call ended; nothing while it runs or has events left.
  std::optional<absl::Status> Ended() const;

 private:
  class Reactor;
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace hearth::gateway
