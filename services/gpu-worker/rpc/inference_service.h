// hearth.v1.Inference on gRPC: translates between the wire and the scheduler. Answers of GetModel
// and GetStatus come at once; text is worked on by a few threads of its own.
#pragma once

#include "hearth/v1/inference.grpc.pb.h"
#include "services/gpu-worker/rpc/serving_state.h"
#include "services/gpu-worker/rpc/task_queue.h"

namespace hearth::worker {

class InferenceService final : public v1::Inference::CallbackService {
 public:
  // `state` is borrowed.
  explicit InferenceService(const ServingState* state);

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ApplyTemplate(grpc::CallbackServerContext* context,
                                          const v1::ApplyTemplateRequest* request,
                                          v1::ApplyTemplateResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::ModelInfo* response) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest* request,
                                      v1::WorkerStatus* response) override;
  grpc::ServerUnaryReactor* GetExpertCache(grpc::CallbackServerContext* context,
                                           const v1::GetExpertCacheRequest* request,
                                           v1::ExpertCacheStatus* response) override;
  grpc::ServerUnaryReactor* SetExpertCachePolicy(
      grpc::CallbackServerContext* context, const v1::SetExpertCachePolicyRequest* request,
      v1::SetExpertCachePolicyResponse* response) override;

 private:
  // Runs `work` with the model on the text threads, and ends the call with its status.
  grpc::ServerUnaryReactor* RunTextWork(grpc::CallbackServerContext* context,
                                        std::function<absl::Status(const ServedModel&)> work);

  const ServingState* const state_;
  TaskQueue text_work_;  // last: its threads end before the rest
};

}  // namespace hearth::worker
