// The controller against machines whose times and texts are known: a simulated clock.
#include "services/gpu-worker/scheduler/draft_controller.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace hearth::worker {
namespace {

// A machine on which a step of n sequences with k guesses each takes `milliseconds[k]`, and a text
// of which each guess is right, if those before were, with probability `right`.
struct World {
  std::vector<double> milliseconds;
  double right = 0.84;
  double noise = 0.02;          // of a step's time
  double interruptions = 0.02;  // share of steps that take ten times as long
  int n_sequences = 1;

  double BestRate()
      const {  // tokens of a sequence a millisecond, the best of all numbers of guesses
    double best = 0;
    for (size_t k = 0; k < milliseconds.size(); ++k) best = std::max(best, Rate(k));
    return best;
  }
  double Rate(size_t k) const {
    double tokens = 0;
    for (size_t i = 0; i <= k; ++i) tokens += std::pow(right, i);
    return tokens / milliseconds[k] / (1 + 9 * interruptions);
  }
};

class Clockwork {
 public:
  Clockwork(DraftController& controller, uint64_t seed = 1)
      : controller_(controller), random_(seed) {}

  // Tokens of a sequence a millisecond.
  double Run(const World& world, int n_steps) {
    double milliseconds = 0, tokens = 0;
    uses_.assign(world.milliseconds.size(), 0);
    n_changes_ = 0;
    for (int i = 0; i < n_steps; ++i) {
      const int k = controller_.Choose(world.n_sequences);
      ++uses_[static_cast<size_t>(k)];
      if (k != last_) ++n_changes_;
      last_ = k;
      double took = world.milliseconds[static_cast<size_t>(k)] * (1 + world.noise * Normal());
      if (Uniform() < world.interruptions) took *= 10;
      GuessCounts counts;
      int n_tokens = 0;
      for (int s = 0; s < world.n_sequences; ++s) {
        size_t n_right = 0;
        for (; n_right < static_cast<size_t>(k); ++n_right) {
          ++counts.tried[n_right];
          if (Uniform() >= world.right) break;
          ++counts.right[n_right];
        }
        n_tokens += 1 + static_cast<int>(n_right);
      }
      milliseconds += took;
      tokens += static_cast<double>(n_tokens) / world.n_sequences;
      controller_.OnStep(world.n_sequences, DraftController::Seconds(took / 1000), counts);
    }
    return tokens / milliseconds;
  }
  // Of the last run: how often each number of guesses was used, and how often it changed.
  const std::vector<int>& uses() const { return uses_; }
  int n_changes() const { return n_changes_; }

 private:
  double Uniform() { return std::uniform_real_distribution<double>(0, 1)(random_); }
  double Normal() { return std::normal_distribution<double>(0, 1)(random_); }

  DraftController& controller_;
  std::mt19937_64 random_;
  std::vector<int> uses_;
  int last_ = 0, n_changes_ = 0;
};

TEST(DraftController, GuessesWhereItMeasuresFaster) {
  DraftController controller(Drafting::kAuto, 1);
  EXPECT_EQ(controller.Choose(1), 0);  // until it knows better
  Clockwork clockwork(controller);
  const World world{.milliseconds = {10, 12}};
  clockwork.Run(world, 100);
  EXPECT_GT(clockwork.Run(world, 5000), 0.97 * world.BestRate());
  EXPECT_GT(clockwork.uses()[1], 4500);
}

TEST(DraftController, StaysOffWhereGuessingIsSlowerAndTrialsCostLittle) {
  DraftController controller(Drafting::kAuto, 3);
  Clockwork clockwork(controller);
  const World world{.milliseconds = {10, 20, 30, 40}};
  clockwork.Run(world, 1000);
  const double rate = clockwork.Run(world, 20000);
  EXPECT_EQ(clockwork.uses()[2] + clockwork.uses()[3], 0);
  EXPECT_GT(clockwork.uses()[1], 0);  // or a text that suits it would never be noticed
  EXPECT_LT(clockwork.uses()[1], 400);
  EXPECT_GT(rate, 0.97 * world.BestRate());
}

TEST(DraftController, FindsTheBestNumberInBetween) {
  for (const uint64_t seed : {1, 2, 3}) {
    DraftController controller(Drafting::kAuto, 3);
    Clockwork clockwork(controller, seed);
    const World world{.milliseconds = {10, 11, 12.5, 18}};  // rates 0.1, 0.167, 0.204, 0.174
    clockwork.Run(world, 500);
    EXPECT_GT(clockwork.Run(world, 5000), 0.96 * world.BestRate());
    EXPECT_GT(clockwork.uses()[2], 4000);
  }
}

TEST(DraftController, FollowsTheText) {
  DraftController controller(Drafting::kAuto, 1);
  Clockwork clockwork(controller);
  World world{.milliseconds = {10, 13}};
  clockwork.Run(world, 3000);
  EXPECT_EQ(controller.Choose(1), 1);
  world.right = 0.05;  // now 0.081 against 0.1
  clockwork.Run(world, 120);
  EXPECT_EQ(controller.Choose(1), 0);
  clockwork.Run(world, 3000);
  EXPECT_LT(clockwork.uses()[1], 150);
  world.right = 0.84;
  clockwork.Run(world, 1200);
  EXPECT_GT(clockwork.Run(world, 1000), 0.9 * world.BestRate());
}

TEST(DraftController, DoesNotWaverBetweenEquals) {
  DraftController controller(Drafting::kAuto, 1);
  Clockwork clockwork(controller);
  // Always right and one per cent better: less than the margin.
  const World world{.milliseconds = {10, 19.8}, .right = 1};
  clockwork.Run(world, 20000);
  EXPECT_LT(clockwork.n_changes(), 80);  // trials only, there and back
  EXPECT_GT(clockwork.uses()[0], 19000);
}

TEST(DraftController, EachNumberOfSequencesIsMeasuredByItself) {
  DraftController controller(Drafting::kAuto, 1);
  Clockwork clockwork(controller);
  const World alone{.milliseconds = {10, 12}}, crowd{.milliseconds = {20, 38}, .n_sequences = 7};
  for (int i = 0; i < 100; ++i) {
    clockwork.Run(alone, 40);
    clockwork.Run(crowd, 40);
  }
  EXPECT_GT(clockwork.Run(alone, 1000), 0.95 * alone.BestRate());
  EXPECT_GT(clockwork.uses()[1], 900);
  clockwork.Run(crowd, 1000);
  EXPECT_GT(clockwork.uses()[0], 900);
}

TEST(DraftController, OnAndOffAreWhatTheySay) {
  DraftController on(Drafting::kOn, 2), off(Drafting::kOff, 2), none(Drafting::kAuto, 0);
  const World world{.milliseconds = {10, 40, 90}};
  Clockwork(on).Run(world, 200);
  Clockwork(off).Run(world, 200);
  Clockwork(none).Run(world, 200);
  for (const int n : {1, 2, 3, 8, 200}) {
    EXPECT_EQ(on.Choose(n), 2);
    EXPECT_EQ(off.Choose(n), 0);
    EXPECT_EQ(none.Choose(n), 0);
  }
}

}  // namespace
}  // namespace hearth::worker
