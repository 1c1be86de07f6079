// The control plane on gRPC: translates between ExpertStore and hearth/v1/expert_store.proto. Every
// call answers at once, on gRPC's threads; WatchLoading is a timer.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "hearth/v1/expert_store.grpc.pb.h"
#include "services/expert-store/segment/expert_store.h"

namespace hearth::store {

class StoreService final : public v1::ExpertStore::CallbackService {
 public:
  explicit StoreService(ExpertStore* store);

  grpc::ServerUnaryReactor* Attach(grpc::CallbackServerContext* context,
                                   const v1::AttachRequest* request,
                                   v1::AttachResponse* response) override;
  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest* request,
                                     v1::DescribeResponse* response) override;
  grpc::ServerWriteReactor<v1::LoadingProgress>* WatchLoading(
      grpc::CallbackServerContext* context, const v1::WatchLoadingRequest* request) override;
  grpc::ServerUnaryReactor* ReportUsage(grpc::CallbackServerContext* context,
                                        const v1::ReportUsageRequest* request,
                                        v1::ReportUsageResponse* response) override;
  grpc::ServerUnaryReactor* GetProfile(grpc::CallbackServerContext* context,
                                       const v1::GetProfileRequest* request,
                                       v1::Profile* response) override;

  const std::string& instance() const { return instance_; }
  uint64_t n_attached() const { return n_attached_; }  // successful Attach calls
  uint64_t n_usage_reports() const { return n_usage_reports_; }
  // Ends the streams of WatchLoading with UNAVAILABLE unless they just end anyway.
  void StopWatching() { is_stopping_ = true; }

 private:
  ExpertStore* const store_;
  const std::string instance_;  // random: changes with every start
  std::atomic<uint64_t> n_attached_{0};
  std::atomic<uint64_t> n_usage_reports_{0};
  std::atomic<bool> is_stopping_{false};
};

// `status` as the message that WatchLoading and Describe send.
v1::LoadingProgress ToProto(const StoreStatus& status);

}  // namespace hearth::store
