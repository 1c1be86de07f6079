// One generation from the queue to its end: its tokens, what the sampler and the stop rules need,
// and the client's stream. Owned by the batch; knows nothing of other sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/text/tokenizer.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/sampling/sampler.h"
#include "services/gpu-worker/sampling/stop_matcher.h"
#include "services/gpu-worker/sampling/token_counts.h"
#include "services/gpu-worker/scheduler/observer.h"
#include "services/gpu-worker/scheduler/output_stream.h"
#include "services/gpu-worker/scheduler/request.h"

namespace hearth::worker {

class Sequence {
 public:
  // `max_total` is the longest prompt + output that fits.
  Sequence(GenerationRequest request, std::shared_ptr<OutputStream> output,
           const Tokenizer& tokenizer, int64_t max_total, Clock::time_point now);

  // Tells the client, once, that its first step begins.
  void Start();
  // Samples from the logits of the last token and sends what became certain. True when that was the
  // end of the text: the client has its Finish then. An error is the sequence's own (damaged
  // logits) and was not sent yet.
  absl::StatusOr<bool> Advance(Sampler& sampler, const LogitsRow& logits, Clock::time_point now,
                               SchedulerObserver& observer);
  // Ends it with an error.
  void Fail(const absl::Status& status, SchedulerObserver& observer);

  // Tokens that the model has not seen yet: the rest of the prompt, or the last token sampled.
  std::span<const int32_t> Unseen() const;
  // The token sampled last, or the prompt's last.
  int32_t last_token() const { return tokens_.back(); }
  int64_t n_total() const { return static_cast<int64_t>(tokens_.size()); }
  // How many guesses beyond the next token could still be part of the output, and find room in the
  // client's stream.
  int64_t most_guesses() const;
  // A guess of the token that comes after `n_before` other guesses, from the logits of the guesser;
  // none from damaged ones.
  std::optional<int32_t> Guess(Sampler& sampler, int n_before, const LogitsRow& logits) const;
  // What the sampler divides its logits by.
  float temperature() const { return request_.sampling.temperature; }
  bool is_decoding() const { return started_output_ && Unseen().size() == 1; }

  // The reason for which it has to end now, if any. Notes since when the client doesn't read.
  std::optional<absl::Status> WhyEnd(Clock::time_point now, Clock::duration slow_client_limit);
  bool is_parked() const { return parked_since_.has_value(); }
  bool is_probe() const { return request_.is_probe; }
  // When WhyEnd may change its mind by itself.
  Clock::time_point NextDeadline(Clock::duration slow_client_limit) const;

  std::unique_ptr<SequenceState> state;  // none while waiting
  int64_t arrival = 0;   // order of admission in the batch: the oldest is never preempted
  int failed_steps = 0;  // since the last token

 private:
  void SendText(std::string text, DeltaEvent delta);
  bool Finish(FinishReason reason, DeltaEvent last, Clock::time_point now,
              SchedulerObserver& observer);

  GenerationRequest request_;
  const std::shared_ptr<OutputStream> output_;
  const int64_t max_total_;
  const Clock::time_point submitted_;
  const int n_prompt_;
  std::vector<int32_t> tokens_;  // prompt and output
  TokenCounts counts_;
  StreamingDetokenizer detokenizer_;
  StopMatcher stops_;
  bool started_ = false;
  bool started_output_ = false;
  Clock::time_point last_token_;
  std::optional<Clock::time_point> parked_since_;
};

}  // namespace hearth::worker
