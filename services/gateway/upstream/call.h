// One unary call to the worker as something to co_await on the gateway's thread.
#pragma once

#include <grpcpp/client_context.h>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <memory>
#include <set>
#include <utility>

#include "absl/status/statusor.h"
#include "common/rpc/status.h"

namespace hearth::gateway {

namespace asio = boost::asio;

// The calls whose callbacks are still to come: the io_context must outlive them all. Not
// thread-safe: used on the gateway's thread.
class CallRegistry {
 public:
  void Add(grpc::ClientContext* context) { contexts_.insert(context); }
  void Remove(grpc::ClientContext* context) { contexts_.erase(context); }
  void CancelAll() {
    for (grpc::ClientContext* context : contexts_) context->TryCancel();
  }
  bool is_empty() const { return contexts_.empty(); }

 private:
  std::set<grpc::ClientContext*> contexts_;
};

// `start(context, request, response, callback)` is a method of the stub's async interface. The
// deadline counts from now.
template <typename Response, typename Request, typename Start>
asio::awaitable<absl::StatusOr<Response>> Call(asio::any_io_executor executor, CallRegistry& calls,
                                               const Request& request,
                                               std::chrono::milliseconds timeout, Start start) {
  struct State {
    grpc::ClientContext context;
    Request request;
    Response response;
  };
  const auto state = std::make_shared<State>();
  state->request = request;
  state->context.set_deadline(std::chrono::system_clock::now() + timeout);
  const grpc::Status status =
      co_await asio::async_initiate<decltype(asio::use_awaitable), void(grpc::Status)>(
          [&](auto handler) {
            // gRPC keeps its callback in a std::function, which copies.
            auto shared = std::make_shared<decltype(handler)>(std::move(handler));
            calls.Add(&state->context);
            start(&state->context, &state->request, &state->response,
                  [executor, state, shared, &calls](grpc::Status result) {
                    asio::post(executor,
                               [state, shared, &calls, result = std::move(result)]() mutable {
                                 calls.Remove(&state->context);
                                 std::move (*shared)(std::move(result));
                               });
                  });
          },
          asio::use_awaitable);
  if (!status.ok()) co_return FromGrpc(status);
  co_return std::move(state->response);
}

}  // namespace hearth::gateway
