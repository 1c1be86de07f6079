// How many tokens to guess ahead: none while guessing measures slower. Used by ContinuousBatch.
//
// A step with guesses takes longer and hands out more tokens; which of the two wins depends on the
// machine, on how many sequences share the step, and on the text. So the controller tries: now and
// then some steps go with one guess more or one less, and what gives more tokens a second stays.
// The oftener trials changed nothing, the longer it waits for the next. Guesses never change a
// text, so nobody but the clock sees any of it.
//
// Pure and single-threaded: times come in from outside.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

enum class Drafting { kOff, kOn, kAuto };

// A step's guesses by their place: the second is tried where the first was right.
struct GuessCounts {
  std::array<int, kMaxDrafts> tried{}, right{};
};

class DraftController {
 public:
  using Seconds = std::chrono::duration<double>;

  // `max_drafts`: what the engine can do; 0 is the same as kOff. kOn: as many always.
  DraftController(Drafting mode, int max_drafts);

  // Guesses for each sequence of the next step that decodes so many.
  int Choose(int n_sequences) const;

  // After a step that decoded with as many guesses as Choose said, and did nothing else: how long
  // it took, guessing included, and what became of the guesses.
  void OnStep(int n_sequences, Seconds took, const GuessCounts& counts);

 private:
  // The times of the last steps with one number of guesses.
  class Times {
   public:
    void Add(Seconds took) { seconds_[static_cast<size_t>(n_++ % kWindow)] = took.count(); }
    void Forget() { n_ = 0; }
    bool are_measured() const { return n_ >= kWindow; }
    double Median() const;  // which an interruption doesn't change

   private:
    static constexpr int64_t kWindow = 16;
    std::array<double, kWindow> seconds_{};
    int64_t n_ = 0;
  };
  // How often guesses at one place are right; the past counts less and less.
  struct Share {
    double tried = 0, right = 0;
  };
  // Steps with about as many sequences.
  struct Group {
    std::vector<Times> times;     // by the number of guesses
    int current = 0;              // guesses outside trials
    int trial = -1;               // on trial; -1: none
    bool upwards = true;          // the next trial's direction
    int64_t until_trial = 0;      // steps
    int64_t pause = 0;            // steps from the last trial to the next
    double rate_when_chosen = 0;  // of `current`, in the last trial
  };

  static size_t GroupOf(int n_sequences);
  void Count(const GuessCounts& counts);
  // Tokens a second of each sequence.
  double Rate(const Group& group, int n_drafts) const;
  void BeginTrial(Group& group);
  void EndTrial(Group& group) const;

  const Drafting mode_;
  const int max_drafts_;
  std::array<Share, kMaxDrafts> shares_;
  std::vector<Group> groups_;
};

}  // namespace hearth::worker
