#include "services/gateway/upstream/generate_stream.h"

#include <utility>

namespace hearth::gateway {
namespace {

// Beyond these the worker waits (gRPC's flow control), and parks the sequence.
constexpr size_t kMaxQueuedEvents = 64;

}  // namespace

// What the stream and its reactor both see, on the gateway's thread only.
struct GenerateStream::Shared {
  std::deque<v1::GenerateEvent> events;
  std::optional<absl::Status> status;
  std::function<void()> on_change;  // empty once the stream is gone
  Reactor* reactor = nullptr;       // null once the call is done
  bool is_paused = false;           // an event was taken from gRPC and no read was started since
};

// gRPC's side. Deletes itself when the call is done. A hold keeps the call open while no read is
// under way, so that reads may be started outside of gRPC's callbacks.
class GenerateStream::Reactor final : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  Reactor(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
          std::chrono::milliseconds timeout, const asio::any_io_executor& executor,
          CallRegistry& calls, std::shared_ptr<Shared> shared)
      : executor_(executor), calls_(calls), shared_(std::move(shared)), request_(request) {
    calls_.Add(&context_);
    context_.set_deadline(std::chrono::system_clock::now() + timeout);
    stub.async()->Generate(&context_, &request_, this);
    AddHold();
    StartRead(&event_);
    StartCall();
  }

  void Read() { StartRead(&event_); }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return RemoveHold();
    asio::post(executor_, [this, shared = shared_, event = std::move(event_)]() mutable {
      OnEvent(*shared, std::move(event));
    });
  }

  void OnDone(const grpc::Status& status) override {
    asio::post(executor_, [this, status = FromGrpc(status)] {
      const std::shared_ptr<Shared> shared = std::move(shared_);
      calls_.Remove(&context_);
      delete this;
      shared->reactor = nullptr;
      shared->status = status;
      if (shared->on_change) shared->on_change();
    });
  }

 private:
  // The gateway's thread. The call can't be done: its hold is ours.
  void OnEvent(Shared& shared, v1::GenerateEvent event) {
    const bool is_wanted = static_cast<bool>(shared.on_change);
    if (is_wanted) shared.events.push_back(std::move(event));
    if (is_wanted && shared.events.size() >= kMaxQueuedEvents) {
      shared.is_paused = true;
    } else {
      Read();
    }
    if (is_wanted) shared.on_change();
  }

  const asio::any_io_executor executor_;
  CallRegistry& calls_;
  std::shared_ptr<Shared> shared_;
  const v1::GenerateRequest request_;
  v1::GenerateEvent event_;
  grpc::ClientContext context_;
};

GenerateStream::GenerateStream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                               std::chrono::milliseconds timeout,
                               const asio::any_io_executor& executor, CallRegistry& calls,
                               std::function<void()> on_change)
    : shared_(std::make_shared<Shared>()) {
  shared_->on_change = std::move(on_change);
  shared_->reactor = new Reactor(stub, request, timeout, executor, calls, shared_);
}

GenerateStream::~GenerateStream() {
  shared_->on_change = nullptr;
  if (shared_->reactor == nullptr) return;
  shared_->reactor->Cancel();
  // A read must be under way for gRPC to tell that the call has ended.
  if (std::exchange(shared_->is_paused, false)) shared_->reactor->Read();
}

std::optional<v1::GenerateEvent> GenerateStream::Next() {
  if (shared_->events.empty()) return std::nullopt;
  v1::GenerateEvent event = std::move(shared_->events.front());
  shared_->events.pop_front();
  if (shared_->is_paused && shared_->events.size() < kMaxQueuedEvents / 2) {
    shared_->is_paused = false;
    shared_->reactor->Read();
  }
  return event;
}

std::optional<absl::Status> GenerateStream::Ended() const {
  return shared_->events.empty() ? shared_->status : std::nullopt;
}

}  // namespace hearth::gateway
