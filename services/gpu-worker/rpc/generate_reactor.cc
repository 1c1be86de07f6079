#include "services/gpu-worker/rpc/generate_reactor.h"

#include <optional>
#include <utility>

#include "common/rpc/status.h"

namespace hearth::worker {
namespace {

void Fill(const TokenLogprob& from, const Tokenizer* tokenizer, v1::TokenLogprob* to) {
  to->set_id(from.id);
  to->set_logprob(from.logprob);
  if (tokenizer != nullptr) to->set_token(std::string(tokenizer->TokenBytes(from.id)));
}

void Fill(const DeltaEvent& from, const Tokenizer* tokenizer, v1::Delta* to) {
  to->set_text(from.text);
  to->mutable_token_ids()->Add(from.token_ids.begin(), from.token_ids.end());
  for (const SampledToken& token : from.logprobs) {
    v1::TokenLogprob* logprob = to->add_logprobs();
    Fill(TokenLogprob{token.id, token.logprob}, tokenizer, logprob);
    for (const TokenLogprob& top : token.top) Fill(top, tokenizer, logprob->add_top());
  }
}

void Fill(const FinishEvent& from, v1::Finish* to) {
  to->set_reason(from.reason == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                    : v1::FINISH_REASON_LENGTH);
  to->set_prompt_tokens(from.prompt_tokens);
  to->set_completion_tokens(from.completion_tokens);
  to->set_seed(from.seed);
  to->set_stop_string(from.stop_string);
}

}  // namespace

v1::GenerateEvent ToProto(const GenerationEvent& event, const Tokenizer* tokenizer) {
  v1::GenerateEvent out;
  if (const auto* started = std::get_if<StartedEvent>(&event)) {
    out.mutable_started()->set_prompt_tokens(started->prompt_tokens);
    out.mutable_started()->set_opens_reasoning(started->opens_reasoning);
  } else if (const auto* delta = std::get_if<DeltaEvent>(&event)) {
    Fill(*delta, tokenizer, out.mutable_delta());
  } else if (const auto* finish = std::get_if<FinishEvent>(&event)) {
    Fill(*finish, out.mutable_finish());
  }
  return out;
}

std::shared_ptr<GenerateReactor> GenerateReactor::Make() {
  auto reactor = std::shared_ptr<GenerateReactor>(new GenerateReactor());
  reactor->self_ = reactor;
  reactor->stream_ = std::make_shared<OutputStream>([weak = std::weak_ptr(reactor)] {
    if (const auto alive = weak.lock()) alive->Pump();
  });
  return reactor;
}

void GenerateReactor::Pump() {
  std::optional<GenerationEvent> event;
  {
    const std::lock_guard lock(mutex_);
    if (is_writing_ || is_finished_) return;
    event = stream_->Pop();
    if (!event.has_value()) return;
    if (EndsStream(*event)) {
      is_finished_ = true;
    } else {
      is_writing_ = true;
    }
    if (!std::holds_alternative<absl::Status>(*event)) event_ = ToProto(*event, tokenizer_);
  }
  // Outside the lock: gRPC may call back at once.
  if (const auto* error = std::get_if<absl::Status>(&*event)) {
    Finish(ToGrpc(*error));
  } else if (std::holds_alternative<FinishEvent>(*event)) {
    StartWriteAndFinish(&event_, grpc::WriteOptions(), grpc::Status::OK);
  } else {
    StartWrite(&event_);
  }
}

void GenerateReactor::OnWriteDone(bool ok) {
  {
    const std::lock_guard lock(mutex_);
    is_writing_ = false;
  }
  if (!ok || stream_->is_cancelled()) {
    stream_->Cancel(absl::CancelledError("the client is gone"));
    return FinishOnce(absl::CancelledError("the client is gone"));
  }
  Pump();
}

void GenerateReactor::OnCancel() {
  // The call ends now; the sequence at the scheduler's next step, which may be late.
  stream_->Cancel(absl::CancelledError("the client cancelled the call"));
  {
    const std::lock_guard lock(mutex_);
    if (is_writing_) return;  // OnWriteDone ends it
  }
  FinishOnce(absl::CancelledError("the client cancelled the call"));
}

void GenerateReactor::FinishOnce(const absl::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    if (is_finished_ || is_writing_) return;
    is_finished_ = true;
  }
  Finish(ToGrpc(status));
}

void GenerateReactor::OnDone() {
  stream_->Cancel(absl::CancelledError("the call is over"));
  self_.reset();
}

}  // namespace hearth::worker
