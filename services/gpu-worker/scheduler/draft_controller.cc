#include "services/gpu-worker/scheduler/draft_controller.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "common/base/check.h"

namespace hearth::worker {
namespace {

// More guesses must be better by this much: without it, two that are equal would take turns.
constexpr double kMargin = 1.03;
// Steps between two trials: few at first and after a change, more after each that changed nothing.
// A trial takes 16 steps, so that in the end it is one step in 65.
constexpr int64_t kFirstPause = 48, kLongestPause = 1024;
// Guesses that give so much less than when they were chosen are tried against fewer at once: the
// text has become another.
constexpr double kMuchLess = 0.85;
// The past's weight in a share of right guesses halves with so many guesses; after a time without
// any, no more than kOldGuesses of it count.
constexpr double kHalfLife = 32, kOldGuesses = 2;
constexpr size_t kGroups = 6;  // 1, 2, up to 4, up to 8, up to 16, more sequences

}  // namespace

double DraftController::Times::Median() const {
  std::array<double, kWindow> sorted = seconds_;
  std::nth_element(sorted.begin(), sorted.begin() + kWindow / 2, sorted.end());
  return std::max(1e-9, sorted[kWindow / 2]);
}

DraftController::DraftController(Drafting mode, int max_drafts)
    : mode_(mode), max_drafts_(mode == Drafting::kOff ? 0 : max_drafts), groups_(kGroups) {
  HEARTH_CHECK(max_drafts >= 0 && max_drafts <= kMaxDrafts);
  for (Group& group : groups_) group.times.resize(static_cast<size_t>(max_drafts_) + 1);
}

size_t DraftController::GroupOf(int n_sequences) {
  HEARTH_CHECK(n_sequences >= 1);
  return std::min<size_t>(kGroups - 1, std::bit_width(static_cast<unsigned>(n_sequences - 1)));
}

int DraftController::Choose(int n_sequences) const {
  if (mode_ != Drafting::kAuto || n_sequences < 1) return max_drafts_;
  const Group& group = groups_[GroupOf(n_sequences)];
  return group.trial >= 0 ? group.trial : group.current;
}

void DraftController::OnStep(int n_sequences, Seconds took, const GuessCounts& counts) {
  if (mode_ != Drafting::kAuto || max_drafts_ == 0) return;
  Count(counts);
  Group& group = groups_[GroupOf(n_sequences)];
  Times& times = group.times[static_cast<size_t>(Choose(n_sequences))];
  times.Add(took / n_sequences);  // so that the steps of a group can be compared
  if (!times.are_measured()) return;
  if (group.trial >= 0) {
    EndTrial(group);
    return;
  }
  const bool is_worse =
      group.current > 0 && Rate(group, group.current) < kMuchLess * group.rate_when_chosen;
  if (is_worse && group.pause - group.until_trial >= kFirstPause) {
    group.upwards = false;
    group.until_trial = 0;
  }
  if (--group.until_trial <= 0) BeginTrial(group);
}

void DraftController::Count(const GuessCounts& counts) {
  for (size_t i = 0; i < shares_.size(); ++i) {
    const double fade = std::exp2(-counts.tried[i] / kHalfLife);
    shares_[i].tried = shares_[i].tried * fade + counts.tried[i];
    shares_[i].right = shares_[i].right * fade + counts.right[i];
  }
}

double DraftController::Rate(const Group& group, int n_drafts) const {
  double tokens = 1, right = 1;
  for (size_t i = 0; i < static_cast<size_t>(n_drafts); ++i) {
    right *= shares_[i].tried > 0 ? shares_[i].right / shares_[i].tried : 0;
    tokens += right;
  }
  return tokens / group.times[static_cast<size_t>(n_drafts)].Median();
}

void DraftController::BeginTrial(Group& group) {
  const bool upwards = group.current == 0 || (group.upwards && group.current < max_drafts_);
  group.upwards = !upwards;
  group.trial = group.current + (upwards ? 1 : -1);
  group.times[static_cast<size_t>(group.trial)].Forget();
  // What the trial will show counts for more than what was long ago.
  for (size_t i = static_cast<size_t>(group.current); i < shares_.size(); ++i) {
    const double keep = std::min(1.0, kOldGuesses / std::max(1e-9, shares_[i].tried));
    shares_[i].tried *= keep;
    shares_[i].right *= keep;
  }
}

void DraftController::EndTrial(Group& group) const {
  const double now = Rate(group, group.current), tried = Rate(group, group.trial);
  const bool is_better = group.trial > group.current ? tried > now * kMargin : tried > now;
  group.pause =
      is_better ? kFirstPause : std::clamp<int64_t>(group.pause * 2, kFirstPause, kLongestPause);
  if (is_better) {
    group.upwards = group.trial > group.current;  // further the same way
    group.current = group.trial;
  }
  group.rate_when_chosen = is_better ? tried : now;
  group.trial = -1;
  group.until_trial = group.pause;
}

}  // namespace hearth::worker
