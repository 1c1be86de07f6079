// Multi-token prediction on the demo model: steps whose last tokens are taken back, and guesses.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/ops/kernels.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

constexpr int kVocab = 6144;

using Ids = std::vector<int32_t>;

class DraftTest : public ::testing::TestWithParam<bool> {
 protected:
  static void SetUpTestSuite() {
    auto checkpoint =
        Checkpoint::Open(std::filesystem::path(hearth::testing::SourceDir()) / "models/demo");
    ASSERT_OK(checkpoint);
    checkpoint_ = checkpoint->release();
    experts_ = new CheckpointExperts(checkpoint_);
  }
  static void TearDownTestSuite() {
    delete std::exchange(experts_, nullptr);
    delete std::exchange(checkpoint_, nullptr);
  }
  void SetUp() override {
    if (!GetParam() && FindKernels("") == nullptr) GTEST_SKIP() << "no fast backend on this CPU";
    engine_ = Make({});
    ASSERT_NE(engine_, nullptr);
  }

  static std::unique_ptr<Engine> Make(EngineOptions options) {
    options.exact = GetParam();
    options.n_threads = 2;
    options.page_tokens = 4;
    if (options.max_drafts == 0) options.max_drafts = kMaxDrafts;
    auto engine = Engine::Create(*checkpoint_, experts_, options);
    EXPECT_OK(engine);
    return engine.ok() ? *std::move(engine) : nullptr;
  }

  static Ids SomeIds(int n, int seed) {
    Ids ids;
    for (int i = 0; i < n; ++i) ids.push_back((i * 37 + seed * 101 + i * i) % kVocab);
    return ids;
  }

  std::vector<float> Step(SequenceState& state, const Ids& ids, int n_drafts = 0) {
    const StepItem item{&state, ids, LogitsWanted::kAll, n_drafts};
    StepLogits logits;
    EXPECT_OK(engine_->Step({&item, 1}, &logits));
    return std::move(logits.values);
  }
  std::unique_ptr<SequenceState> After(const Ids& ids) {
    auto state = engine_->NewSequence();
    Step(*state, ids);
    return state;
  }
  std::vector<float> Guess(SequenceState& state, int32_t token, int depth = 0) {
    const DraftItem item{&state, token};
    StepLogits logits;
    EXPECT_OK(engine_->Draft({&item, 1}, depth, &logits));
    EXPECT_EQ(logits.n_rows, 1);
    return std::move(logits.values);
  }
  // Both have the same memory and go on in the same way.
  void ExpectSame(SequenceState& a, SequenceState& b) {
    EXPECT_EQ(a.n_tokens(), b.n_tokens());
    for (const int64_t n : {1, 2, 3, 4, 5}) {
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
    const Ids next = SomeIds(5, 99);
    EXPECT_EQ(Step(a, next), Step(b, next));
    EXPECT_EQ(Guess(a, 3), Guess(b, 3));
  }

  static Checkpoint* checkpoint_;
  static CheckpointExperts* experts_;
  std::unique_ptr<Engine> engine_;
};

Checkpoint* DraftTest::checkpoint_ = nullptr;
CheckpointExperts* DraftTest::experts_ = nullptr;

Ids Joined(const Ids& a, const Ids& b) {
  Ids joined = a;
  joined.insert(joined.end(), b.begin(), b.end());
  return joined;
}

// Sanitizers make a step 50 times as long, and look at memory, not at values.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kIsSanitized = true;
#else
constexpr bool kIsSanitized = false;
#endif

TEST_P(DraftTest, WhatIsTakenBackWasNeverSeen) {
  const Ids prompt = SomeIds(kIsSanitized ? 5 : 14, 1);
  for (int n_drafts = 1; n_drafts <= kMaxDrafts; ++n_drafts) {
    for (int n_refused = 0; n_refused <= n_drafts; ++n_refused) {
      for (const int n_sure : {1, 3}) {
        if (kIsSanitized && n_sure != 3) continue;
        SCOPED_TRACE(absl::StrCat(n_sure, " + ", n_drafts, " tokens, ", n_refused, " refused"));
        const Ids tokens = SomeIds(n_sure + n_drafts, 2);
        const Ids kept(tokens.begin(), tokens.end() - n_refused);
        const auto state = After(prompt), want = After(Joined(prompt, kept));
        Step(*state, tokens, n_drafts);
        engine_->Rollback(*state, n_refused);
        ExpectSame(*state, *want);
      }
    }
  }
  EXPECT_EQ(engine_->pages_free(), engine_->pages_total());
}

// The first step of a sequence may hold guesses too, and one step's guesses follow another's.
TEST_P(DraftTest, StepsWithGuessesFollowEachOther) {
  const Ids all = SomeIds(40, 5);
  const auto state = engine_->NewSequence();
  size_t n_seen = 0;
  for (const int n_right : {2, 0, 3, 1, 1, 0, 2, 3}) {
    Ids tokens(all.begin() + static_cast<int64_t>(n_seen),
               all.begin() + static_cast<int64_t>(n_seen) + 1 + n_right);
    n_seen += tokens.size();
    while (tokens.size() < 1 + kMaxDrafts) tokens.push_back(4000 + n_right);
    Step(*state, tokens, kMaxDrafts);
    engine_->Rollback(*state, kMaxDrafts - n_right);
  }
  ExpectSame(*state, *After(Ids(all.begin(), all.begin() + static_cast<int64_t>(n_seen))));
}

TEST_P(DraftTest, RowsOfGuessesHaveTheLogitsOfStepsOfOneToken) {
  const Ids prompt = SomeIds(9, 3), tokens = SomeIds(4, 4);
  const auto state = After(prompt), one_by_one = After(prompt);
  std::vector<float> want;
  for (const int32_t token : tokens) {
    const auto row = Step(*one_by_one, {token});
    want.insert(want.end(), row.begin(), row.end());
  }
  EXPECT_EQ(Step(*state, tokens, 3), want);
}

TEST_P(DraftTest, GuessesDependNeitherOnChunksNorOnCompany) {
  const Ids prompt = SomeIds(23, 6);
  const auto whole = After(prompt);
  const std::vector<float> want = Guess(*whole, 5), deeper = Guess(*whole, 8, 1);
  EXPECT_NE(want, deeper);
  std::vector<std::unique_ptr<SequenceState>> states;
  std::vector<DraftItem> items, deep_items;
  for (const size_t chunk : {1, 7, 22}) {
    states.push_back(engine_->NewSequence());
    for (size_t begin = 0; begin < prompt.size(); begin += chunk) {
      Step(*states.back(),
           Ids(prompt.begin() + static_cast<int64_t>(begin),
               prompt.begin() + static_cast<int64_t>(std::min(begin + chunk, prompt.size()))));
    }
    items.push_back({states.back().get(), 5});
    deep_items.push_back({states.back().get(), 8});
    const auto other = After(SomeIds(3 + static_cast<int>(chunk), 7));
    items.push_back({other.get(), 1});
    StepLogits logits;
    ASSERT_OK(engine_->Draft(items, 0, &logits));
    for (size_t i = 0; i < states.size(); ++i) {
      const auto row = logits.Row(static_cast<int>(i), kVocab);
      EXPECT_TRUE(std::ranges::equal(row, want)) << "sequence " << i << " of " << states.size();
    }
    items.pop_back();
    ASSERT_OK(engine_->Draft(deep_items, 1, &logits));
    for (size_t i = 0; i < states.size(); ++i) {
      EXPECT_TRUE(std::ranges::equal(logits.Row(static_cast<int>(i), kVocab), deeper));
    }
  }
}

TEST_P(DraftTest, GuessingChangesNoStep) {
  const Ids prompt = SomeIds(11, 8), next = SomeIds(6, 9);
  const auto with = After(prompt), without = After(prompt);
  for (const int32_t token : next) {
    for (int depth = 0; depth < kMaxDrafts; ++depth) Guess(*with, token + depth, depth);
    EXPECT_EQ(Step(*with, {token}), Step(*without, {token}));
  }
  ExpectSame(*with, *without);
}

// Against chance: 1 in 6144. (docs/numbers/mtp.md has the share of right guesses.)
TEST_P(DraftTest, GuessesOftenAreWhatTheModelSays) {
  if (kIsSanitized) GTEST_SKIP() << "many steps, for their values alone";
  const auto argmax = [](const std::vector<float>& rows) {  // of the last one
    return static_cast<int32_t>(std::max_element(rows.end() - kVocab, rows.end()) -
                                (rows.end() - kVocab));
  };
  const auto state = engine_->NewSequence();
  int32_t token = argmax(Step(*state, SomeIds(4, 1)));
  int n_right = 0, n_right_twice = 0;
  for (int i = 0; i < 60; ++i) {
    const int32_t guess = argmax(Guess(*state, token)), second = argmax(Guess(*state, guess, 1));
    const int32_t next = argmax(Step(*state, {token}));
    n_right += guess == next ? 1 : 0;
    if (guess == next) {
      token = argmax(Step(*state, {next}));
      n_right_twice += token == second ? 1 : 0;
    } else {
      token = next;
    }
  }
  EXPECT_GT(n_right, 15);
  EXPECT_GT(n_right_twice, 5);
}

TEST_P(DraftTest, PagesComeAndGoWithGuesses) {
  engine_ = Make({.kv_tokens = 16});  // four pages
  const auto state = After(SomeIds(7, 1));
  EXPECT_EQ(engine_->pages_free(), 2);
  Step(*state, SomeIds(4, 2), 3);  // tokens 8 to 11
  EXPECT_EQ(engine_->pages_free(), 1);
  engine_->Rollback(*state, 2);
  EXPECT_EQ(state->n_tokens(), 9);
  EXPECT_EQ(engine_->pages_free(), 1);
  engine_->Rollback(*state, 1);  // of the same step
  EXPECT_EQ(state->n_tokens(), 8);
  EXPECT_EQ(engine_->pages_free(), 2);
}

TEST_P(DraftTest, WhatCannotBeGuessedIsRefused) {
  const auto fresh = engine_->NewSequence(), state = After(SomeIds(3, 1));
  StepLogits logits;
  const auto draft = [&](SequenceState* of, int32_t token, int depth) {
    const DraftItem item{of, token};
    return engine_->Draft({&item, 1}, depth, &logits);
  };
  const auto refused = [](std::string_view why) {
    return IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(why)));
  };
  EXPECT_THAT(draft(fresh.get(), 1, 0), refused("after 0 tokens"));
  EXPECT_THAT(draft(state.get(), kVocab, 0), refused("token id 6144"));
  EXPECT_THAT(draft(state.get(), 1, 1), refused("draft 1 after 3 tokens and 0 drafts"));
  EXPECT_THAT(draft(state.get(), 1, kMaxDrafts), refused("the engine makes 3"));
  EXPECT_THAT(draft(nullptr, 1, 0), refused("needs a sequence"));
  EXPECT_OK(draft(state.get(), 1, 0));
  EXPECT_OK(draft(state.get(), 1, 1));
  EXPECT_THAT(draft(state.get(), 1, 1), refused("and 2 drafts"));

  const Ids tokens = SomeIds(5, 1);
  const auto step = [&](int n_tokens, int n_drafts) {
    const StepItem item{state.get(), std::span(tokens).first(static_cast<size_t>(n_tokens)),
                        LogitsWanted::kLast, n_drafts};
    return engine_->Step({&item, 1}, &logits);
  };
  EXPECT_THAT(step(3, 3), refused("3 of 3 tokens"));
  EXPECT_THAT(step(5, 4), refused("at most 3"));
  EXPECT_THAT(step(5, -1), refused("-1 of 5"));
  EXPECT_EQ(state->n_tokens(), 3);
}

INSTANTIATE_TEST_SUITE_P(ExactAndFast, DraftTest, ::testing::Values(true, false));

TEST(DraftOptions, WithoutHeadOrWishThereAreNoGuesses) {
  const std::filesystem::path root = hearth::testing::SourceDir();
  for (const auto& [model, wanted] : {std::pair("tests/golden/tiny-a", 3), {"models/demo", 0}}) {
    ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(root / model));
    CheckpointExperts experts(checkpoint.get());
    ASSERT_OK_AND_ASSIGN(const auto engine,
                         Engine::Create(*checkpoint, &experts, {.max_drafts = wanted}));
    EXPECT_EQ(engine->max_drafts(), 0);
    const auto state = engine->NewSequence();
    const DraftItem item{state.get(), 1};
    StepLogits logits;
    EXPECT_THAT(engine->Draft({&item, 1}, 0, &logits),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("the engine makes 0")));
  }
}

}  // namespace
}  // namespace hearth::worker
