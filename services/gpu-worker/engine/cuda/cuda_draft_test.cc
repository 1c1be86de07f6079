// Multi-token prediction on the GPU, on the demo model: guesses, and steps whose last tokens are
// taken back. With every expert in a slot a row has the same bits in steps of one row and of
// several, so that nothing here has a tolerance but the comparison with the CPU.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/gpu-worker/engine/cuda/cuda_engine_testing.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

using Tokens = std::vector<int32_t>;
using Sequence = std::unique_ptr<SequenceState>;

class CudaDraftTest : public CudaEngineTest {
 protected:
  void SetUp() override {
    CudaEngineTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ASSERT_NO_FATAL_FAILURE(Open("models/demo"));
    engine_ = Make({.kv_tokens = 8192, .max_drafts = kMaxDrafts, .max_sequences = 24});
    ASSERT_NE(engine_, nullptr);
    ASSERT_EQ(engine_->max_drafts(), kMaxDrafts);
  }

  Logits Step(SequenceState& state, const Tokens& ids, int n_drafts = 0) {
    const StepItem item{&state, ids, LogitsWanted::kAll, n_drafts};
    StepLogits logits;
    EXPECT_OK(engine_->Step({&item, 1}, &logits));
    return std::move(logits.values);
  }
  // The prompt at once, the rest token by token.
  Sequence After(const Tokens& prompt, const Tokens& rest = {}) {
    auto state = engine_->NewSequence();
    Step(*state, prompt);
    for (const int32_t token : rest) Step(*state, {token});
    return state;
  }
  Logits Guess(SequenceState& state, int32_t token, int depth = 0) {
    return GuessBy(*engine_, state, token, depth);
  }
  static Logits GuessBy(Engine& engine, SequenceState& state, int32_t token, int depth = 0) {
    const DraftItem item{&state, token};
    StepLogits logits;
    EXPECT_OK(engine.Draft({&item, 1}, depth, &logits));
    EXPECT_EQ(logits.n_rows, 1);
    return std::move(logits.values);
  }
  // Both have the same memory and go on in the same way.
  void ExpectSame(SequenceState& a, SequenceState& b) {
    EXPECT_EQ(a.n_tokens(), b.n_tokens());
    for (const int64_t n : {1, 60, 64, 70}) {
      EXPECT_EQ(engine_->PagesNeeded(a, n), engine_->PagesNeeded(b, n));
    }
    std::vector<float> conv_a, conv_b, state_a, state_b;
    for (const int layer : {0, 6}) {
      ASSERT_OK(engine_->ReadDeltaState(a, layer, &conv_a, &state_a));
      ASSERT_OK(engine_->ReadDeltaState(b, layer, &conv_b, &state_b));
      EXPECT_EQ(conv_a, conv_b);
      EXPECT_EQ(state_a, state_b);
    }
    EXPECT_EQ(Guess(a, 17), Guess(b, 17));
    for (const int32_t token : Ids(3, 99)) EXPECT_EQ(Step(a, {token}), Step(b, {token}));
    EXPECT_EQ(Guess(a, 3), Guess(b, 3));
  }
  std::unique_ptr<Engine> engine_;
};

Tokens Rows(const Tokens& ids, size_t first, size_t n) {
  return {ids.begin() + static_cast<int64_t>(first), ids.begin() + static_cast<int64_t>(first + n)};
}

TEST_F(CudaDraftTest, GuessesAreFloat32sWithinTheFastTolerance) {
  CheckpointExperts plain(checkpoint_.get());
  ASSERT_OK_AND_ASSIGN(const auto reference,
                       Engine::Create(*checkpoint_, &plain,
                                      {.n_threads = 4, .exact = true, .max_drafts = kMaxDrafts}));
  const auto few = Make({.max_drafts = kMaxDrafts, .expert_slots = 8, .cache_policy = "recency"});
  const auto none = Make({.max_drafts = kMaxDrafts, .expert_slots = 0});
  for (Engine* engine : {engine_.get(), few.get(), none.get()}) {
    ASSERT_NE(engine, nullptr);
    const auto state = engine->NewSequence(), same = reference->NewSequence();
    ASSERT_OK(Feed(*engine, *state, Ids(13, 1)));
    ASSERT_OK(Feed(*reference, *same, Ids(13, 1)));
    Logits got, want;
    for (const int32_t token : Ids(16, 2)) {
      for (int depth = 0; depth < kMaxDrafts; ++depth) {
        for (const auto& [of, to] : {std::pair(engine, &got), std::pair(reference.get(), &want)}) {
          const Logits row =
              GuessBy(*of, of == engine ? *state : *same, (token + depth) % vocabulary(), depth);
          to->insert(to->end(), row.begin(), row.end());
        }
      }
      ASSERT_OK(Feed(*engine, *state, {{token}}));
      ASSERT_OK(Feed(*reference, *same, {{token}}));
    }
    EXPECT_LE(RelativeRms(got, want), kFastRms);
  }
}

TEST_F(CudaDraftTest, WhatIsTakenBackWasNeverSeen) {
  const auto prompt = Ids(14, 1);
  for (int n_drafts = 1; n_drafts <= kMaxDrafts; ++n_drafts) {
    for (int n_refused = 0; n_refused <= n_drafts; ++n_refused) {
      SCOPED_TRACE(absl::StrCat(n_drafts, " drafts, ", n_refused, " refused"));
      const auto tokens = Ids(1 + n_drafts, 2);
      const auto kept = Rows(tokens, 0, tokens.size() - static_cast<size_t>(n_refused));
      const auto state = After(prompt), want = After(prompt, kept);
      Step(*state, tokens, n_drafts);
      engine_->Rollback(*state, n_refused);
      ExpectSame(*state, *want);
    }
  }
  EXPECT_EQ(engine_->pages_free(), engine_->pages_total());
}

// The first step of a sequence may hold guesses too, and one step's guesses follow another's.
TEST_F(CudaDraftTest, StepsWithGuessesFollowEachOther) {
  const auto all = Ids(40, 5);
  const auto state = engine_->NewSequence(), want = engine_->NewSequence();
  size_t n_seen = 0;
  for (const size_t n_right : {2, 0, 3, 1, 1, 0, 2, 3}) {
    auto tokens = Rows(all, n_seen, 1 + n_right);
    n_seen += tokens.size();
    while (tokens.size() < 1 + kMaxDrafts) {
      tokens.push_back(static_cast<int32_t>(4000 + n_right));
    }
    Step(*state, tokens, kMaxDrafts);
    engine_->Rollback(*state, kMaxDrafts - static_cast<int>(n_right));
  }
  for (size_t i = 0; i < n_seen; ++i) Step(*want, {all[i]});
  ExpectSame(*state, *want);
}

TEST_F(CudaDraftTest, RowsOfGuessesHaveTheLogitsOfStepsOfOneToken) {
  const auto calls = Make({.kv_tokens = 8192, .max_drafts = kMaxDrafts});
  ASSERT_NE(calls, nullptr);
  calls->SetObserver([](std::string_view, int, int, const float*) {});
  for (int n_drafts = 1; n_drafts <= kMaxDrafts; ++n_drafts) {
    for (int n_sequences = 1; n_sequences <= 8 / (1 + n_drafts); ++n_sequences) {
      SCOPED_TRACE(absl::StrCat(n_sequences, " sequences, ", n_drafts, " drafts"));
      std::vector<Sequence> states, others;
      std::vector<Tokens> tokens;
      std::vector<StepItem> items, other_items;
      Logits want;
      for (int s = 0; s < n_sequences; ++s) {
        const auto prompt = Ids(9 + s, s);
        tokens.push_back(Ids(1 + n_drafts, 20 + s));
        states.push_back(After(prompt));
        others.push_back(calls->NewSequence());
        ASSERT_OK(Feed(*calls, *others.back(), prompt));
        const auto one_by_one = After(prompt);
        for (const int32_t token : tokens.back()) {
          const Logits row = Step(*one_by_one, {token});
          want.insert(want.end(), row.begin(), row.end());
        }
      }
      for (size_t s = 0; s < states.size(); ++s) {
        items.push_back({states[s].get(), tokens[s], LogitsWanted::kAll, n_drafts});
        other_items.push_back({others[s].get(), tokens[s], LogitsWanted::kAll, n_drafts});
      }
      StepLogits got, by_calls;
      ASSERT_OK(engine_->Step(items, &got));
      EXPECT_EQ(got.values, want);
      ASSERT_OK(calls->Step(other_items, &by_calls));
      EXPECT_EQ(by_calls.values, want);
    }
  }
}

TEST_F(CudaDraftTest, AStepMayHoldDraftsOfAllNumbersAndPrompts) {
  std::vector<Sequence> states, alone;
  std::vector<Tokens> tokens;
  std::vector<StepItem> items;
  const int n_drafts[] = {2, 0, 3, 1, 0, 1, 2, 0, 3};  // the last two have a prompt in front
  for (int s = 0; s < 9; ++s) {
    const bool has_prompt = s >= 7;
    tokens.push_back(Ids(n_drafts[s] + (has_prompt ? 12 : 1), 30 + s));
    states.push_back(After(Ids(7 + s, s)));
    alone.push_back(After(Ids(7 + s, s)));
  }
  for (size_t s = 0; s < states.size(); ++s) {
    items.push_back({states[s].get(), tokens[s],
                     s % 2 == 0 ? LogitsWanted::kAll : LogitsWanted::kLast, n_drafts[s]});
  }
  StepLogits logits;
  ASSERT_OK(engine_->Step(items, &logits));
  Logits want;
  for (size_t s = 0; s < items.size(); ++s) {
    // What comes before the drafts' token in a step of its own.
    StepItem item = items[s];
    item.state = alone[s].get();
    const size_t n_first = item.n_drafts > 0 ? item.tokens.size() - 1 - item.n_drafts : 0;
    for (const bool is_first : {true, false}) {
      StepItem part = item;
      part.tokens = is_first ? item.tokens.first(n_first) : item.tokens.subspan(n_first);
      if (is_first) part.n_drafts = 0;
      if (is_first && item.logits == LogitsWanted::kLast) part.logits = LogitsWanted::kNone;
      if (part.tokens.empty()) continue;
      StepLogits own;
      ASSERT_OK(engine_->Step({&part, 1}, &own));
      want.insert(want.end(), own.values.begin(), own.values.end());
    }
  }
  EXPECT_EQ(logits.values, want);
  for (size_t s = 0; s < states.size(); ++s) {
    engine_->Rollback(*states[s], n_drafts[s] / 2);
    engine_->Rollback(*alone[s], n_drafts[s] / 2);
    ExpectSame(*states[s], *alone[s]);
  }
}

TEST_F(CudaDraftTest, APromptMayFollowDraftsThatWereRight) {
  const auto tokens = Ids(4, 3), more = Ids(300, 4);  // by the tensor cores' kernels
  for (const size_t n : {size_t{5}, size_t{20}, more.size()}) {
    const auto prompt = Rows(more, 0, n);
    const auto state = After(Ids(10, 2)), want = After(Ids(10, 2), Rows(tokens, 0, 3));
    Step(*state, tokens, 3);
    engine_->Rollback(*state, 1);
    EXPECT_EQ(Step(*state, prompt), Step(*want, prompt)) << n;
    ExpectSame(*state, *want);
  }
}

TEST_F(CudaDraftTest, GuessesDependNeitherOnCompanyNorOnGraphs) {
  const auto first = After(Ids(23, 6));
  const Logits want = Guess(*first, 5), deeper = Guess(*first, 8, 1);
  EXPECT_NE(want, deeper);
  // More than go into one batch.
  std::vector<Sequence> states;
  std::vector<DraftItem> items;
  const auto big = Make({.kv_tokens = 8192, .max_drafts = kMaxDrafts, .max_sequences = 11});
  ASSERT_NE(big, nullptr);
  for (int s = 0; s < 11; ++s) {
    states.push_back(big->NewSequence());
    ASSERT_OK(Feed(*big, *states.back(), s % 5 == 0 ? Ids(23, 6) : Ids(9 + s, s)));
    items.push_back({states.back().get(), s % 5 == 0 ? 5 : s});
  }
  StepLogits logits;
  ASSERT_OK(big->Draft(items, 0, &logits));
  for (const int s : {0, 5, 10}) {
    EXPECT_TRUE(std::ranges::equal(logits.Row(s, vocabulary()), want)) << s;
  }
  items = {{states[10].get(), 8}, {states[5].get(), 8}};
  ASSERT_OK(big->Draft(items, 1, &logits));
  for (const int s : {0, 1}) {
    EXPECT_TRUE(std::ranges::equal(logits.Row(s, vocabulary()), deeper)) << s;
  }
}

TEST_F(CudaDraftTest, GuessingChangesNoStep) {
  const auto prompt = Ids(11, 8);
  const auto with = After(prompt), without = After(prompt);
  for (const int32_t token : Ids(6, 9)) {
    for (int depth = 0; depth < kMaxDrafts; ++depth) {
      Guess(*with, (token + depth) % vocabulary(), depth);
    }
    EXPECT_EQ(Step(*with, {token}), Step(*without, {token}));
  }
  ExpectSame(*with, *without);
}

// Where the head is not used the engine computes the same.
TEST_F(CudaDraftTest, TheHeadChangesNoLogits) {
  const auto without = Make({.kv_tokens = 8192});
  ASSERT_NE(without, nullptr);
  EXPECT_EQ(without->max_drafts(), 0);
  const auto prompt = Ids(21, 4);
  ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*without, prompt, 12));
  ASSERT_OK_AND_ASSIGN(const Answer got, Continue(*engine_, prompt, 12));
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_EQ(got.logits, want.logits);
}

// Against chance: 1 in 6144.
TEST_F(CudaDraftTest, GuessesOftenAreWhatTheModelSays) {
  const auto state = After(Ids(4, 1));
  int32_t token = 17;
  int n_right = 0;
  for (int i = 0; i < 60; ++i) {
    const int32_t guess = Likeliest(Guess(*state, token));
    const int32_t next = Likeliest(Step(*state, {token}));
    n_right += guess == next ? 1 : 0;
    token = next;
  }
  EXPECT_GT(n_right, 15);
}

// A page that was taken back becomes another sequence's; the next one in its place is another page.
// Whoever steps alone is not in the second place, whose pages the device then still knows.
TEST_F(CudaDraftTest, PagesThatWereTakenBackAreReadNoMore) {
  const auto prompt = Ids(62, 1), tokens = Ids(4, 2);
  const auto first = After(Ids(5, 9)), state = After(prompt);
  const auto want = After(prompt, Rows(tokens, 0, 1));
  const auto both = [&](const Tokens& ids, int n_drafts) {
    const StepItem items[] = {{first.get(), ids, LogitsWanted::kNone, n_drafts},
                              {state.get(), ids, LogitsWanted::kAll, n_drafts}};
    StepLogits logits;
    EXPECT_OK(engine_->Step(items, &logits));
    return std::move(logits.values);
  };
  const int64_t free = engine_->pages_free();
  both(tokens, 3);
  EXPECT_EQ(engine_->pages_free(), free - 1);
  engine_->Rollback(*state, 3);
  engine_->Rollback(*first, 3);
  EXPECT_EQ(engine_->pages_free(), free);
  // Now its one token has become 64 of a page; the next takes another page.
  const auto other = After(Ids(60, 3));
  EXPECT_EQ(engine_->pages_free(), free - 1);
  const auto more = Ids(4, 4);
  EXPECT_EQ(both(more, 3), [&] {
    Logits all;
    for (const int32_t token : more) {
      const Logits row = Step(*want, {token});
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }());
  ExpectSame(*state, *want);
}

TEST_F(CudaDraftTest, WhatCannotBeGuessedIsRefused) {
  const auto fresh = engine_->NewSequence(), state = After(Ids(3, 1));
  StepLogits logits;
  const auto draft = [&](SequenceState* of, int32_t token, int depth) {
    const DraftItem item{of, token};
    return engine_->Draft({&item, 1}, depth, &logits);
  };
  const auto refused = [](const std::string& why) {
    return IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr(why));
  };
  EXPECT_THAT(draft(fresh.get(), 1, 0), refused("after 0 tokens"));
  EXPECT_THAT(draft(state.get(), vocabulary(), 0), refused("token id"));
  EXPECT_THAT(draft(state.get(), 1, 1), refused("draft 1 after 3 tokens and 0 drafts"));
  EXPECT_THAT(draft(state.get(), 1, kMaxDrafts), refused("the engine makes 3"));
  EXPECT_OK(draft(state.get(), 1, 0));
  EXPECT_OK(draft(state.get(), 1, 1));
  EXPECT_THAT(draft(state.get(), 1, 1), refused("and 2 drafts"));
}

}  // namespace
}  // namespace hearth::worker
