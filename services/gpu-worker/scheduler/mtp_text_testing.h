// The demo model's own text with and without multi-token prediction, for the tests of each backend:
// the same tokens, greedy and sampled, alone and in company, whatever is guessed.
#pragma once

#include <memory>
#include <vector>

#include "common/checkpoint/checkpoint.h"
#include "common/text/tokenizer.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/scheduler/batch.h"

namespace hearth::worker {

class MtpTexts {
 public:
  // Of engines with these options, each with the drafts that are asked for, in steps of so many
  // rows at most.
  explicit MtpTexts(const EngineOptions& options, int max_rows = 512)
      : options_(options), max_rows_(max_rows) {}

  // Asserts that texts are the same.
  void ExpectTheSameWithAndWithoutGuesses();

 private:
  using Ids = std::vector<int32_t>;
  struct Counter : SchedulerObserver {
    void OnGuesses(int n_guessed, int n_right) override { guessed += n_guessed, right += n_right; }
    int guessed = 0, right = 0;
  };
  void Load();
  std::unique_ptr<Engine> MakeEngine(int max_drafts);
  std::vector<GenerationRequest> Requests() const;
  // What each request's tokens are when so many run at once.
  std::vector<Ids> Answers(int max_drafts, int at_once, Counter* counter);

  const EngineOptions options_;
  const int max_rows_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ExpertSource> experts_;
};

}  // namespace hearth::worker
