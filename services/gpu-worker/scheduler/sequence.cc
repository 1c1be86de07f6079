#include "services/gpu-worker/scheduler/sequence.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace hearth::worker {

Sequence::Sequence(GenerationRequest request, std::shared_ptr<OutputStream> output,
                   const Tokenizer& tokenizer, int64_t max_total, Clock::time_point now)
    : request_(std::move(request)),
      output_(std::move(output)),
      max_total_(max_total),
      submitted_(now),
      n_prompt_(static_cast<int>(request_.prompt.size())),
      tokens_(std::move(request_.prompt)),
      detokenizer_(tokenizer, /*skip_special=*/true),
      stops_(std::move(request_.stop_strings)),
      last_token_(now) {
  counts_.AddPrompt(tokens_);
}

void Sequence::Start() {
  if (std::exchange(started_, true)) return;
  output_->Push(StartedEvent{n_prompt_, request_.opens_reasoning});
  if (!request_.echo.empty()) output_->Push(DeltaEvent{std::move(request_.echo), {}, {}});
}

std::span<const int32_t> Sequence::Unseen() const {
  const int64_t seen = state == nullptr ? 0 : state->n_tokens();
  return std::span(tokens_).subspan(static_cast<size_t>(seen));
}

int64_t Sequence::most_guesses() const {
  const int64_t left = std::min({request_.max_tokens - (n_total() - n_prompt_),
                                 max_total_ - n_total(), static_cast<int64_t>(output_->room())});
  return std::max<int64_t>(0, left - 1);  // the next token needs no guess
}

std::optional<int32_t> Sequence::Guess(Sampler& sampler, int n_before,
                                       const LogitsRow& logits) const {
  // Penalties don't see the guesses before: it costs some of their rightness, never the text's.
  const auto position = static_cast<uint64_t>(n_total() - n_prompt_ + n_before);
  const auto guess = sampler.Choose(request_.sampling, counts_, position, logits);
  return guess.ok() ? std::optional(*guess) : std::nullopt;
}

absl::StatusOr<bool> Sequence::Advance(Sampler& sampler, const LogitsRow& logits,
                                       Clock::time_point now, SchedulerObserver& observer) {
  const auto n_output = static_cast<uint64_t>(n_total() - n_prompt_);
  HEARTH_ASSIGN_OR_RETURN(SampledToken token,
                          sampler.Sample(request_.sampling, counts_, n_output, logits));
  tokens_.push_back(token.id);
  counts_.AddOutput(token.id);
  failed_steps = 0;
  if (!is_probe()) {
    if (n_output == 0) {
      observer.OnFirstToken(now - submitted_, n_prompt_);
    } else {
      observer.OnToken(now - last_token_);
    }
  }
  started_output_ = true;
  last_token_ = now;

  DeltaEvent delta;
  if (request_.return_token_ids) delta.token_ids.push_back(token.id);
  const auto& stop_ids = request_.stop_ids;
  if (std::find(stop_ids.begin(), stop_ids.end(), token.id) != stop_ids.end()) {
    return Finish(FinishReason::kStop, std::move(delta), now, observer);
  }
  std::string text = stops_.Push(detokenizer_.Push(token.id));
  if (request_.sampling.logprobs >= 0) delta.logprobs.push_back(std::move(token));
  if (stops_.matched()) {
    delta.text = std::move(text);
    return Finish(FinishReason::kStop, std::move(delta), now, observer);
  }
  const int64_t n_completion = n_total() - n_prompt_;
  if (n_completion >= request_.max_tokens || n_total() >= max_total_) {
    delta.text = std::move(text);
    return Finish(FinishReason::kLength, std::move(delta), now, observer);
  }
  SendText(std::move(text), std::move(delta));
  return false;
}

void Sequence::SendText(std::string text, DeltaEvent delta) {
  delta.text = std::move(text);
  if (delta.text.empty() && delta.token_ids.empty() && delta.logprobs.empty()) return;
  output_->Push(std::move(delta));
}

bool Sequence::Finish(FinishReason reason, DeltaEvent last, Clock::time_point now,
                      SchedulerObserver& observer) {
  if (!stops_.matched()) {
    last.text += stops_.Push(detokenizer_.Flush());
    last.text += stops_.Flush();
    if (stops_.matched()) reason = FinishReason::kStop;
  }
  std::string text = std::move(last.text);
  SendText(std::move(text), std::move(last));
  FinishEvent finish;
  finish.reason = reason;
  finish.prompt_tokens = n_prompt_;
  finish.completion_tokens = static_cast<int>(n_total() - n_prompt_);
  finish.seed = request_.sampling.seed;
  finish.stop_string = stops_.stop_string();
  if (!is_probe()) observer.OnFinished(reason, now - submitted_, finish.completion_tokens);
  output_->Push(std::move(finish));
  return true;
}

void Sequence::Fail(const absl::Status& status, SchedulerObserver& observer) {
  if (!is_probe()) observer.OnFailed(status.code(), static_cast<int>(n_total() - n_prompt_));
  output_->Push(status);
}

std::optional<absl::Status> Sequence::WhyEnd(Clock::time_point now,
                                             Clock::duration slow_client_limit) {
  if (auto reason = output_->cancel_reason()) return reason;
  if (now >= request_.deadline) {
    return absl::DeadlineExceededError(
        absl::StrCat("the request's deadline passed after ", n_total() - n_prompt_, " tokens"));
  }
  if (!output_->is_full()) {
    parked_since_.reset();
    return std::nullopt;
  }
  if (!parked_since_.has_value()) parked_since_ = now;
  if (now - *parked_since_ < slow_client_limit) return std::nullopt;
  return absl::CancelledError(absl::StrCat(
      "the client has not read its stream for ",
      std::chrono::duration_cast<std::chrono::seconds>(slow_client_limit).count(), " s"));
}

Clock::time_point Sequence::NextDeadline(Clock::duration slow_client_limit) const {
  if (!parked_since_.has_value()) return request_.deadline;
  return std::min(request_.deadline, *parked_since_ + slow_client_limit);
}

}  // namespace hearth::worker
