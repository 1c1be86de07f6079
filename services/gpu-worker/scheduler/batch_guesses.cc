// The batch's guesses: who gets some in the next step, and which.
#include <algorithm>

#include "common/base/status_macros.h"
#include "services/gpu-worker/scheduler/batch.h"

namespace hearth::worker {

void ContinuousBatch::PlanGuesses(std::vector<Planned>& plan) const {
  const int n_decoding = static_cast<int>(
      std::count_if(plan.begin(), plan.end(), [](const auto& p) { return p.is_decoding; }));
  const int n_wanted = n_decoding == 0 ? 0 : drafts_.Choose(n_decoding);
  if (n_wanted == 0) return;
  int64_t rows_left = options_.max_batch_tokens, pages_left = engine_.pages_free();
  for (const Planned& planned : plan) {
    rows_left -= planned.n_tokens;
    pages_left -= engine_.PagesNeeded(*planned.sequence->state, planned.n_tokens);
  }
  for (Planned& planned : plan) {
    if (!planned.is_decoding) continue;
    const SequenceState& state = *planned.sequence->state;
    const auto n = std::min({int64_t{n_wanted}, planned.sequence->most_guesses(), rows_left});
    const int64_t pages = engine_.PagesNeeded(state, planned.n_tokens + n) -
                          engine_.PagesNeeded(state, planned.n_tokens);
    if (n <= 0 || pages > pages_left) continue;
    planned.n_guesses = static_cast<int>(n);
    rows_left -= n;
    pages_left -= pages;
  }
}

absl::Status ContinuousBatch::Guess(std::vector<Planned>& plan) {
  for (int depth = 0; depth < engine_.max_drafts(); ++depth) {
    HEARTH_RETURN_IF_ERROR(GuessOnce(plan, depth));
  }
  return absl::OkStatus();
}

absl::Status ContinuousBatch::GuessOnce(std::vector<Planned>& plan, int depth) {
  std::vector<Planned*> asked;
  std::vector<DraftItem> items;
  for (Planned& planned : plan) {
    if (planned.n_guesses <= depth || planned.n_guessed() < depth) continue;
    asked.push_back(&planned);
    items.push_back(
        {planned.sequence->state.get(), planned.tokens.back(), planned.sequence->temperature()});
  }
  if (items.empty()) return absl::OkStatus();
  HEARTH_RETURN_IF_ERROR(engine_.Draft(items, depth, &logits_));
  for (size_t i = 0; i < asked.size(); ++i) {
    const auto guess = asked[i]->sequence->Guess(sampler_, depth, RowOf(static_cast<int>(i)));
    if (guess.has_value()) asked[i]->tokens.push_back(*guess);
  }
  return absl::OkStatus();
}

}  // namespace hearth::worker
