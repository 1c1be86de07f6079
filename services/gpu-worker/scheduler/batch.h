// Which sequences run, and what the next step computes: the scheduler without its thread.
//
// Each step decodes every running sequence and reads a piece of every prompt that is not read yet.
// Prompts share what the step leaves them equally, and at most `prefill_chunk` tokens while others
// decode, so a long prompt delays nobody's next token by more than one chunk. Sequences are
// admitted in the order of their arrival, as many as max_sequences and the KV pages allow. When
// pages run out the youngest sequence gives its pages back and is computed again later from its
// tokens: its text is the same.
//
// Where the engine can guess (multi-token prediction), decoding sequences may get guesses of their
// next tokens into the step: rows that are computed in vain where the sampler then chooses another
// token. Every token is sampled from the model's own logits with its own draw, so a text never
// depends on guesses. They take only rows and pages that nobody else needs.
//
// Not thread-safe: belongs to the engine's thread (and to the simulation in batch_test.cc).
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/sampling/sampler.h"
#include "services/gpu-worker/scheduler/draft_controller.h"
#include "services/gpu-worker/scheduler/sequence.h"

namespace hearth::worker {

struct BatchOptions {
  int max_sequences = 8;
  int max_batch_tokens = 512;  // as the engine's
  int prefill_chunk = 64;      // prompt tokens of a step in which others decode
  Clock::duration slow_client_limit = std::chrono::seconds(30);
  Drafting drafting = Drafting::kOff;
};

class ContinuousBatch {
 public:
  // All borrowed.
  ContinuousBatch(Engine& engine, const BatchOptions& options, SchedulerObserver& observer)
      : engine_(engine),
        options_(options),
        observer_(observer),
        drafts_(options.drafting, engine.max_drafts()) {}

  // Probes go first.
  void Add(std::unique_ptr<Sequence> sequence);

  // Ends what has to end, admits, computes one step and hands out its tokens. False if there was
  // nothing to compute: then nothing happens before Add, a wake of a stream, or NextDeadline.
  bool Step(Clock::time_point now);

  // Ends everything with `status`.
  void FailAll(const absl::Status& status);

  int n_running() const { return static_cast<int>(running_.size()); }
  int n_waiting() const { return static_cast<int>(waiting_.size()); }
  bool is_empty() const { return running_.empty() && waiting_.empty(); }
  Clock::time_point NextDeadline() const;
  // When a token was last produced; nothing before the first.
  std::optional<Clock::time_point> last_token() const { return last_token_; }

 private:
  using Sequences = std::vector<std::unique_ptr<Sequence>>;
  struct Planned {
    Sequence* sequence = nullptr;
    int n_tokens = 0;   // of those that the model has not seen
    int n_guesses = 0;  // wanted behind them
    bool is_decoding = false;
    bool reads_to_the_end = false;     // then a token is sampled
    std::vector<int32_t> tokens = {};  // n_tokens, then the guesses that there are

    int n_guessed() const { return static_cast<int>(tokens.size()) - n_tokens; }
  };

  void EndWhatMust(Clock::time_point now);
  void Admit();
  bool HasRoomFor(const Sequence& candidate) const;
  std::vector<Planned> Plan() const;
  // Preempts until the plan's pages are there.
  void MakeRoom(std::vector<Planned>& plan);
  void Preempt(const Sequence* victim);
  // The youngest whose client doesn't read, else the youngest.
  const Sequence* Victim() const;
  // Gives decoding sequences guesses, as far as rows and pages are left over.
  void PlanGuesses(std::vector<Planned>& plan) const;
  absl::Status Guess(std::vector<Planned>& plan);
  absl::Status GuessOnce(std::vector<Planned>& plan, int depth);
  void Compute(std::vector<Planned>& plan, Clock::time_point now);
  absl::Status Run(std::vector<Planned>& plan);
  // Of what the engine gave last.
  LogitsRow RowOf(int row);
  void HandOut(const std::vector<Planned>& plan, Clock::duration took, Clock::time_point now);
  // Samples from a sequence's rows as long as the next row's token was guessed right.
  void HandOutRows(const Planned& planned, int first_row, Clock::time_point now,
                   GuessCounts& counts);
  void OnStepFailed(std::vector<Planned> plan, const absl::Status& status, Clock::time_point now);
  void Remove(const Sequence* sequence);

  Engine& engine_;
  const BatchOptions options_;
  SchedulerObserver& observer_;
  Sampler sampler_;
  DraftController drafts_;
  StepLogits logits_;
  std::deque<std::unique_ptr<Sequence>> waiting_;  // next to be admitted in front
  Sequences running_;                              // by arrival
  int64_t next_arrival_ = 0;
  Clock::time_point not_before_ = Clock::time_point::min();  // the next step, after a failed one
  std::optional<Clock::time_point> last_token_;
};

}  // namespace hearth::worker
