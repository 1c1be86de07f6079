// One Generate call: takes the request's events from its OutputStream and writes them, one at a
// time. gRPC decides when the client has taken a message; until then events wait in the stream, and
// a full stream parks the sequence.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <string>

#include "common/text/tokenizer.h"
#include "hearth/v1/inference.grpc.pb.h"
#include "services/gpu-worker/scheduler/output_stream.h"

namespace hearth::worker {

// Lives until gRPC is done with it; the stream's callback holds it weakly.
class GenerateReactor final : public grpc::ServerWriteReactor<v1::GenerateEvent>,
                              public std::enable_shared_from_this<GenerateReactor> {
 public:
  static std::shared_ptr<GenerateReactor> Make();

  const std::shared_ptr<OutputStream>& stream() const { return stream_; }
  // For the bytes of logprobs' tokens; before the first event.
  void SetTokenizer(const Tokenizer* tokenizer) { tokenizer_ = tokenizer; }
  // Ends the call with an error before the scheduler has it.
  void Refuse(const absl::Status& status) { stream_->Push(status); }

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateReactor() = default;
  // Writes the next event, if there is one and nothing is being written.
  void Pump();
  void FinishOnce(const absl::Status& status);

  std::shared_ptr<OutputStream> stream_;
  const Tokenizer* tokenizer_ = nullptr;
  std::shared_ptr<GenerateReactor> self_;  // until OnDone

  std::mutex mutex_;
  bool is_writing_ = false;   // guarded by mutex_
  bool is_finished_ = false;  // guarded by mutex_: Finish was called
  v1::GenerateEvent event_;   // belongs to gRPC while is_writing_
};

// The scheduler's event as the wire's. Not for errors.
v1::GenerateEvent ToProto(const GenerationEvent& event, const Tokenizer* tokenizer);

}  // namespace hearth::worker
