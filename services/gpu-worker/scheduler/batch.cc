#include "services/gpu-worker/scheduler/batch.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::worker {
namespace {

// A step that failed for a passing reason (an expert that is being reloaded, an interrupt) is
// computed again so many times before its sequences fail.
constexpr int kMaxFailedSteps = 10;
constexpr auto kRetryDelay = std::chrono::milliseconds(500);

// Shares `budget` equally: nobody gets more than it wants, and what one leaves the others take.
std::vector<int> ShareEqually(const std::vector<int64_t>& wants, int64_t budget) {
  std::vector<int> shares(wants.size(), 0);
  std::vector<size_t> by_want(wants.size());
  for (size_t i = 0; i < wants.size(); ++i) by_want[i] = i;
  std::stable_sort(by_want.begin(), by_want.end(),
                   [&](size_t a, size_t b) { return wants[a] < wants[b]; });
  auto n_left = static_cast<int64_t>(wants.size());
  for (const size_t i : by_want) {
    const int64_t share = std::min(wants[i], (budget + n_left - 1) / n_left);
    shares[i] = static_cast<int>(share);
    budget -= share;
    --n_left;
  }
  return shares;
}

}  // namespace

void ContinuousBatch::Add(std::unique_ptr<Sequence> sequence) {
  if (sequence->is_probe()) {
    waiting_.push_front(std::move(sequence));
  } else {
    waiting_.push_back(std::move(sequence));
  }
}

bool ContinuousBatch::Step(Clock::time_point now) {
  EndWhatMust(now);
  if (now < not_before_) return false;
  Admit();
  std::vector<Planned> plan = Plan();
  if (plan.empty()) return false;
  MakeRoom(plan);
  if (!plan.empty()) Compute(plan, now);
  return true;
}

void ContinuousBatch::EndWhatMust(Clock::time_point now) {
  const auto must_end = [&](const std::unique_ptr<Sequence>& sequence) {
    const auto reason = sequence->WhyEnd(now, options_.slow_client_limit);
    if (reason.has_value()) sequence->Fail(*reason, observer_);
    return reason.has_value();
  };
  std::erase_if(waiting_, must_end);
  std::erase_if(running_, must_end);
}

void ContinuousBatch::Admit() {
  while (true) {
    // One whose client doesn't read (it was preempted) must not keep the others waiting.
    const auto next = std::find_if(waiting_.begin(), waiting_.end(),
                                   [](const auto& sequence) { return !sequence->is_parked(); });
    if (next == waiting_.end()) return;
    if (n_running() >= options_.max_sequences && !(*next)->is_probe()) return;
    (*next)->state = engine_.NewSequence();
    if (!running_.empty() && !HasRoomFor(**next)) {
      (*next)->state.reset();
      return;
    }
    std::unique_ptr<Sequence> sequence = std::move(*next);
    waiting_.erase(next);
    sequence->Start();
    if (sequence->arrival == 0) sequence->arrival = ++next_arrival_;
    running_.push_back(std::move(sequence));
  }
}

// The candidate's tokens must fit beside what the running ones have still to read: otherwise it
// would only be preempted again.
bool ContinuousBatch::HasRoomFor(const Sequence& candidate) const {
  int64_t needed = engine_.PagesNeeded(*candidate.state, candidate.n_total() + 1);
  for (const auto& sequence : running_) {
    const auto unseen = static_cast<int64_t>(sequence->Unseen().size());
    needed += engine_.PagesNeeded(*sequence->state, unseen + 1);
  }
  return needed <= engine_.pages_free();
}

std::vector<ContinuousBatch::Planned> ContinuousBatch::Plan() const {
  std::vector<Planned> plan;
  std::vector<Sequence*> readers;
  std::vector<int64_t> wants;
  for (const auto& sequence : running_) {
    if (sequence->is_parked()) continue;
    if (sequence->is_decoding()) {
      plan.push_back({.sequence = sequence.get(), .n_tokens = 1, .is_decoding = true});
    } else {
      readers.push_back(sequence.get());
      wants.push_back(static_cast<int64_t>(sequence->Unseen().size()));
    }
  }
  const int64_t left = options_.max_batch_tokens - static_cast<int64_t>(plan.size());
  // A chunk smaller than the number of prompts would leave some of them standing.
  const int64_t chunk =
      std::max<int64_t>(options_.prefill_chunk, static_cast<int64_t>(readers.size()));
  const std::vector<int> shares = ShareEqually(wants, plan.empty() ? left : std::min(left, chunk));
  for (size_t i = 0; i < readers.size(); ++i) {
    if (shares[i] > 0) plan.push_back({.sequence = readers[i], .n_tokens = shares[i]});
  }
  return plan;
}

void ContinuousBatch::MakeRoom(std::vector<Planned>& plan) {
  const auto needed = [&] {
    int64_t pages = 0;
    for (const Planned& planned : plan) {
      pages += engine_.PagesNeeded(*planned.sequence->state, planned.n_tokens);
    }
    return pages;
  };
  while (running_.size() > 1 && needed() > engine_.pages_free()) {
    const Sequence* victim = Victim();
    std::erase_if(plan, [&](const Planned& planned) { return planned.sequence == victim; });
    Preempt(victim);
  }
}

const Sequence* ContinuousBatch::Victim() const {
  const auto rank = [](const auto& sequence) {
    return std::pair(sequence->is_parked(), sequence->arrival);
  };
  return std::max_element(running_.begin(), running_.end(),
                          [&](const auto& a, const auto& b) { return rank(a) < rank(b); })
      ->get();
}

void ContinuousBatch::Preempt(const Sequence* victim) {
  const auto at = std::find_if(running_.begin(), running_.end(),
                               [&](const auto& other) { return other.get() == victim; });
  std::unique_ptr<Sequence> sequence = std::move(*at);
  running_.erase(at);
  sequence->state.reset();
  waiting_.push_front(std::move(sequence));
  observer_.OnPreempted();
}

void ContinuousBatch::Compute(std::vector<Planned>& plan, Clock::time_point now) {
  for (Planned& planned : plan) {
    const auto unseen = planned.sequence->Unseen();
    const auto n = static_cast<size_t>(planned.n_tokens);
    planned.reads_to_the_end = n == unseen.size();
    planned.tokens.assign(unseen.begin(), unseen.begin() + planned.n_tokens);
  }
  PlanGuesses(plan);
  const Clock::time_point start = Clock::now();
  const absl::Status status = Run(plan);
  const Clock::duration took = Clock::now() - start;
  int n_prefill = 0, n_decode = 0;
  for (const Planned& planned : plan) {
    (planned.is_decoding ? n_decode : n_prefill) += static_cast<int>(planned.tokens.size());
  }
  observer_.OnStep(took, n_prefill, n_decode);
  if (!status.ok()) return OnStepFailed(plan, status, now + took);
  HandOut(plan, took, now + took);
}

absl::Status ContinuousBatch::Run(std::vector<Planned>& plan) {
  HEARTH_RETURN_IF_ERROR(Guess(plan));
  std::vector<StepItem> items;
  items.reserve(plan.size());
  for (const Planned& planned : plan) {
    items.push_back({.state = planned.sequence->state.get(),
                     .tokens = planned.tokens,
                     .logits = !planned.reads_to_the_end  ? LogitsWanted::kNone
                               : planned.n_guessed() == 0 ? LogitsWanted::kLast
                                                          : LogitsWanted::kAll,
                     .n_drafts = planned.n_guessed(),
                     .temperature = planned.sequence->temperature()});
  }
  return engine_.Step(items, &logits_);
}

LogitsRow ContinuousBatch::RowOf(int row) {
  const int vocabulary = engine_.config().vocab_size;
  if (logits_.top.empty()) return LogitsRow(logits_.Row(row, vocabulary));
  return {&logits_.top[static_cast<size_t>(row)], vocabulary,
          [this, row] { return engine_.ReadLogits(row); }};
}

void ContinuousBatch::HandOut(const std::vector<Planned>& plan, Clock::duration took,
                              Clock::time_point now) {
  const auto n = static_cast<int>(plan.size());
  const int n_guesses = drafts_.Choose(n);
  bool is_as_chosen = true;  // by drafts_, and nothing else was computed
  int row = 0, n_guessed = 0;
  GuessCounts counts;
  for (const Planned& planned : plan) {
    is_as_chosen &= planned.is_decoding && planned.n_guessed() == n_guesses;
    if (!planned.reads_to_the_end) continue;  // no row
    HandOutRows(planned, row, now, counts);
    row += 1 + planned.n_guessed();
    n_guessed += planned.n_guessed();
  }
  if (n_guessed > 0) {
    observer_.OnGuesses(n_guessed, std::accumulate(counts.right.begin(), counts.right.end(), 0));
  }
  if (is_as_chosen) drafts_.OnStep(n, took, counts);
}

void ContinuousBatch::HandOutRows(const Planned& planned, int first_row, Clock::time_point now,
                                  GuessCounts& counts) {
  Sequence* sequence = planned.sequence;
  const int n_guessed = planned.n_guessed();
  for (int n_right = 0;; ++n_right) {
    const auto ended = sequence->Advance(sampler_, RowOf(first_row + n_right), now, observer_);
    if (ended.ok()) last_token_ = now;
    if (!ended.ok()) sequence->Fail(ended.status(), observer_);
    if (!ended.ok() || *ended) {
      Remove(sequence);
      return;
    }
    if (n_right == n_guessed) return;
    const auto place = static_cast<size_t>(n_right);
    ++counts.tried[place];
    if (sequence->last_token() != planned.tokens[static_cast<size_t>(planned.n_tokens) + place]) {
      engine_.Rollback(*sequence->state, n_guessed - n_right);
      return;
    }
    ++counts.right[place];
  }
}

void ContinuousBatch::OnStepFailed(std::vector<Planned> plan, const absl::Status& status,
                                   Clock::time_point now) {
  // Pages ran out although they were counted: one makes room, nothing has changed.
  if (absl::IsResourceExhausted(status) && running_.size() > 1) return Preempt(Victim());

  // Who stops the worker interrupts the step, and then ends the sequences with the true reason.
  const bool may_pass = absl::IsUnavailable(status) || absl::IsCancelled(status);
  // The states of all items are lost. From the youngest, so that the oldest ends up in front.
  std::sort(plan.begin(), plan.end(), [](const Planned& a, const Planned& b) {
    return a.sequence->arrival > b.sequence->arrival;
  });
  for (const Planned& planned : plan) {
    Sequence* sequence = planned.sequence;
    if (may_pass && ++sequence->failed_steps <= kMaxFailedSteps) {
      Preempt(sequence);
      not_before_ = now + kRetryDelay;
    } else {
      sequence->Fail(Annotate(status, "the model's step failed"), observer_);
      Remove(sequence);
    }
  }
}

void ContinuousBatch::Remove(const Sequence* sequence) {
  std::erase_if(running_, [&](const auto& other) { return other.get() == sequence; });
}

void ContinuousBatch::FailAll(const absl::Status& status) {
  for (const auto& sequence : running_) sequence->Fail(status, observer_);
  for (const auto& sequence : waiting_) sequence->Fail(status, observer_);
  running_.clear();
  waiting_.clear();
}

Clock::time_point ContinuousBatch::NextDeadline() const {
  Clock::time_point next = Clock::time_point::max();
  if (!is_empty() && not_before_ != Clock::time_point::min()) next = not_before_;
  for (const auto& sequence : running_) {
    next = std::min(next, sequence->NextDeadline(options_.slow_client_limit));
  }
  for (const auto& sequence : waiting_) {
    next = std::min(next, sequence->NextDeadline(options_.slow_client_limit));
  }
  return next;
}

}  // namespace hearth::worker
