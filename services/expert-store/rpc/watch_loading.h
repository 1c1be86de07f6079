// One stream of WatchLoading: the state now, then changes at most every 200 ms, until READY or
// FAILED. Deletes itself.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>

#include "hearth/v1/expert_store.pb.h"

namespace hearth::store {

class LoadingWatch final : public grpc::ServerWriteReactor<v1::LoadingProgress> {
 public:
  // `now` is asked on gRPC's threads. The stream ends with UNAVAILABLE once `is_stopping` is true.
  LoadingWatch(std::function<v1::LoadingProgress()> now, const std::atomic<bool>* is_stopping);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void SendOrWait();
  void WaitForTick();

  const std::function<v1::LoadingProgress()> now_;
  const std::atomic<bool>* const is_stopping_;
  std::atomic<bool> is_cancelled_{false};
  v1::LoadingProgress message_;  // stays put while it is being written
  grpc::Alarm tick_;
};

}  // namespace hearth::store
