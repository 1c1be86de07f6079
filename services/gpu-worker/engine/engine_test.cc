#include "services/gpu-worker/engine/engine.h"

#include <cmath>
#include <filesystem>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/engine/rotary.h"
#include "services/gpu-worker/engine/tiled_weights.h"
#include "services/gpu-worker/engine/weights.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto checkpoint = Checkpoint::Open(std::filesystem::path(hearth::testing::SourceDir()) /
                                       "tests/golden/tiny-a");
    ASSERT_OK(checkpoint);
    checkpoint_ = *std::move(checkpoint);
    experts_ = std::make_unique<CheckpointExperts>(checkpoint_.get());
  }

  std::unique_ptr<Engine> Make(const EngineOptions& options) {
    auto engine = Engine::Create(*checkpoint_, experts_.get(), options);
    EXPECT_OK(engine);
    return engine.ok() ? *std::move(engine) : nullptr;
  }

  // Some ids, different for each seed.
  static std::vector<int32_t> Ids(int n, int seed) {
    std::vector<int32_t> ids;
    for (int i = 0; i < n; ++i) ids.push_back((i * 37 + seed * 101 + i * i) % 512);
    return ids;
  }

  static absl::StatusOr<std::vector<float>> RunAlone(Engine& engine, std::span<const int32_t> ids,
                                                     size_t chunk) {
    const auto state = engine.NewSequence();
    std::vector<float> all;
    for (size_t begin = 0; begin < ids.size(); begin += chunk) {
      const StepItem item{state.get(), ids.subspan(begin, std::min(chunk, ids.size() - begin)),
                          LogitsWanted::kAll};
      StepLogits logits;
      HEARTH_RETURN_IF_ERROR(engine.Step({&item, 1}, &logits));
      all.insert(all.end(), logits.values.begin(), logits.values.end());
    }
    return all;
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<CheckpointExperts> experts_;
};

TEST_F(EngineTest, LogitsAreTheSameBitsForEveryChunkingAndThreadCount) {
  const auto ids = Ids(70, 1);
  const auto one = Make({.n_threads = 1}), two = Make({.n_threads = 3, .page_tokens = 16});
  ASSERT_OK_AND_ASSIGN(const auto whole, RunAlone(*one, ids, 70));
  for (const size_t chunk : {1, 7, 64}) {
    ASSERT_OK_AND_ASSIGN(const auto chunked, RunAlone(*two, ids, chunk));
    EXPECT_EQ(chunked, whole) << "chunks of " << chunk;
  }
}

TEST_F(EngineTest, LogitsDoNotDependOnTheRestOfTheBatch) {
  const auto engine = Make({.n_threads = 2});
  constexpr int kSequences = 5;
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> alone;
  std::vector<std::unique_ptr<SequenceState>> states;
  for (int s = 0; s < kSequences; ++s) {
    ids.push_back(Ids(20 + s, s));
    ASSERT_OK_AND_ASSIGN(alone.emplace_back(), RunAlone(*engine, ids.back(), 100));
    states.push_back(engine->NewSequence());
  }
  // Chunks of 1 (decode) and of 3 to 6 (prefill) of different sequences meet in each step.
  std::vector<std::vector<float>> together(kSequences);
  std::vector<size_t> done(kSequences, 0);
  for (int step = 0; step < 30; ++step) {
    std::vector<StepItem> items;
    std::vector<int> who;
    for (int s = 0; s < kSequences; ++s) {
      const size_t n = (step + s) % 3 == 0 ? 1 : static_cast<size_t>(s) + 2;
      const size_t left = ids[s].size() - done[s];
      if (left == 0) continue;
      items.push_back({states[s].get(), std::span(ids[s]).subspan(done[s], std::min(n, left)),
                       LogitsWanted::kAll});
      done[s] += std::min(n, left);
      who.push_back(s);
    }
    if (items.empty()) break;
    StepLogits logits;
    ASSERT_OK(engine->Step(items, &logits));
    int row = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      for (size_t t = 0; t < items[i].tokens.size(); ++t) {
        const auto values = logits.Row(row++, 512);
        auto& all = together[who[i]];
        all.insert(all.end(), values.begin(), values.end());
      }
    }
  }
  for (int s = 0; s < kSequences; ++s) EXPECT_EQ(together[s], alone[s]) << "sequence " << s;
}

TEST_F(EngineTest, OnlyTheWantedLogitsComeBack) {
  const auto engine = Make({});
  const auto ids = Ids(9, 3);
  ASSERT_OK_AND_ASSIGN(const auto all, RunAlone(*engine, ids, 9));
  const auto first = engine->NewSequence(), second = engine->NewSequence();
  const StepItem items[] = {{first.get(), ids, LogitsWanted::kNone},
                            {second.get(), ids, LogitsWanted::kLast}};
  StepLogits logits;
  ASSERT_OK(engine->Step(items, &logits));
  ASSERT_EQ(logits.n_rows, 1);
  EXPECT_TRUE(std::equal(logits.values.begin(), logits.values.end(), all.end() - 512));
}

TEST_F(EngineTest, ExhaustedPagesRefuseTheStepAndChangeNothing) {
  const auto engine = Make({.page_tokens = 4, .kv_tokens = 16});
  const auto ids = Ids(12, 4);
  const auto state = engine->NewSequence(), other = engine->NewSequence();
  const StepItem fits{state.get(), ids, LogitsWanted::kLast};
  StepLogits logits;
  ASSERT_OK(engine->Step({&fits, 1}, &logits));
  EXPECT_EQ(engine->pages_free(), 1);
  EXPECT_EQ(engine->PagesNeeded(*state, 1), 1);

  const StepItem too_many[] = {{state.get(), std::span(ids).first(4), LogitsWanted::kLast},
                               {other.get(), std::span(ids).first(1), LogitsWanted::kLast}};
  EXPECT_THAT(engine->Step(too_many, &logits),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("needs 2 KV pages, 1")));
  EXPECT_EQ(engine->pages_free(), 1);
  EXPECT_EQ(state->n_tokens(), 12);

  // The refused step left no trace: the sequence goes on as if it had never been tried.
  ASSERT_OK_AND_ASSIGN(const auto alone, RunAlone(*Make({.page_tokens = 4}), Ids(13, 4), 13));
  const auto next = Ids(13, 4);
  const StepItem one{state.get(), std::span(next).last(1), LogitsWanted::kLast};
  ASSERT_OK(engine->Step({&one, 1}, &logits));
  EXPECT_TRUE(std::equal(logits.values.begin(), logits.values.end(), alone.end() - 512));
}

TEST_F(EngineTest, AnEndedSequenceGivesItsPagesBackAndTheyAreReusedCleanly) {
  const auto engine = Make({.page_tokens = 4, .kv_tokens = 40});
  ASSERT_OK_AND_ASSIGN(const auto first, RunAlone(*engine, Ids(33, 1), 33));
  EXPECT_EQ(engine->pages_free(), engine->pages_total());
  ASSERT_OK(RunAlone(*engine, Ids(40, 2), 40));
  ASSERT_OK_AND_ASSIGN(const auto again, RunAlone(*engine, Ids(33, 1), 33));
  EXPECT_EQ(first, again);
}

TEST_F(EngineTest, BadStepsAreRefused) {
  const auto engine = Make({.max_batch_tokens = 8});
  const auto state = engine->NewSequence();
  StepLogits logits;
  const std::vector<int32_t> ids = {1}, bad = {512}, negative = {-1}, many(9, 1);
  const auto run = [&](std::vector<StepItem> items) { return engine->Step(items, &logits); };
  EXPECT_THAT(run({{state.get(), bad, LogitsWanted::kLast}}),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("token id 512")));
  EXPECT_FALSE(run({{state.get(), negative, LogitsWanted::kLast}}).ok());
  EXPECT_FALSE(run({{state.get(), {}, LogitsWanted::kLast}}).ok());
  EXPECT_FALSE(run({{nullptr, ids, LogitsWanted::kLast}}).ok());
  EXPECT_FALSE(
      run({{state.get(), ids, LogitsWanted::kLast}, {state.get(), ids, LogitsWanted::kLast}}).ok());
  EXPECT_THAT(run({{state.get(), many, LogitsWanted::kLast}}),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("the limit is 8")));
  EXPECT_EQ(state->n_tokens(), 0);
  EXPECT_OK(run({{state.get(), ids, LogitsWanted::kLast}}));
}

TEST_F(EngineTest, InterruptEndsARunningStepAndProgressIsSeen) {
  const auto engine = Make({.max_batch_tokens = 4096});
  const auto ids = Ids(4000, 5);
  const auto state = engine->NewSequence();
  absl::Status status;
  std::thread runner([&] {
    const StepItem item{state.get(), ids, LogitsWanted::kLast};
    StepLogits logits;
    status = engine->Step({&item, 1}, &logits);
  });
  while (engine->progress() < 3) std::this_thread::yield();
  engine->Interrupt();
  runner.join();
  EXPECT_THAT(status, IsStatus(absl::StatusCode::kCancelled, ::testing::_));
  engine->ClearInterrupt();
  EXPECT_OK(RunAlone(*engine, Ids(5, 1), 5));
}

TEST_F(EngineTest, AnExpertThatIsNotThereFailsTheStep) {
  class NoExperts final : public ExpertSource {
   public:
    absl::StatusOr<ExpertRef> Get(int, int) override {
      return absl::UnavailableError("the store is loading");
    }
  };
  NoExperts none;
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create(*checkpoint_, &none, {}));
  EXPECT_THAT(RunAlone(*engine, Ids(3, 1), 3),
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("loading")));
}

TEST(Weights, TheMtpHeadIsReadWhereItIsThereAndAskedFor) {
  const std::filesystem::path root = hearth::testing::SourceDir();
  ASSERT_OK_AND_ASSIGN(const auto demo, Checkpoint::Open(root / "models/demo"));
  ASSERT_OK_AND_ASSIGN(const ModelWeights without, ReadWeights(*demo));
  EXPECT_FALSE(without.mtp.has_value());
  ASSERT_OK_AND_ASSIGN(ModelWeights with, ReadWeights(*demo, /*with_mtp=*/true));
  ASSERT_TRUE(with.mtp.has_value());
  EXPECT_EQ(with.mtp->fc.ref.out, 256);
  EXPECT_EQ(with.mtp->fc.ref.in, 512);
  EXPECT_EQ(with.mtp->layer.attention.q_norm.size(), 64u);
  EXPECT_EQ(with.mtp->layer.experts.router.ref.out, 32);
  // In the fast backend's memory like all other linears.
  ASSERT_OK_AND_ASSIGN(const PageBuffer memory, TileWeights(with, 2));
  EXPECT_EQ(with.mtp->fc.ref.kind, WeightKind::kTiled4);
  EXPECT_EQ(with.mtp->layer.attention.o_proj.ref.kind, WeightKind::kTiled4);

  ASSERT_OK_AND_ASSIGN(const auto tiny, Checkpoint::Open(root / "tests/golden/tiny-a"));
  ASSERT_OK_AND_ASSIGN(const ModelWeights none, ReadWeights(*tiny, /*with_mtp=*/true));
  EXPECT_FALSE(none.mtp.has_value());
}

TEST(RotaryTable, PlainAndYarnFrequenciesFollowTheirFormulas) {
  RopeConfig rope{.theta = 10000, .rotary_dims = 8};
  const RotaryTable plain = MakeRotaryTable(rope);
  ASSERT_EQ(plain.inverse_frequencies.size(), 4u);
  EXPECT_DOUBLE_EQ(plain.inverse_frequencies[0], 1);
  EXPECT_NEAR(plain.inverse_frequencies[1], 0.1, 1e-12);
  EXPECT_NEAR(plain.inverse_frequencies[3], 0.001, 1e-12);

  rope.yarn = true;
  rope.factor = 4;
  rope.original_max_position_embeddings = 1000;
  rope.attention_factor = 1.1;
  // 32 turns over 1000 positions: pair 8 ln(1000 / (64 pi)) / (2 ln 10000) = 0.697, down to 0; 1
  // turn: 2.202, up to 3.
  const RotaryTable yarn = MakeRotaryTable(rope);
  EXPECT_DOUBLE_EQ(yarn.inverse_frequencies[0], 1);
  EXPECT_NEAR(yarn.inverse_frequencies[1], 0.1 * (1.0 / 3 / 4 + 2.0 / 3), 1e-12);
  EXPECT_NEAR(yarn.inverse_frequencies[3], 0.001 / 4, 1e-12);
  EXPECT_DOUBLE_EQ(yarn.scale, 1.1);
}

// Chooses the experts (layer + position + place) modulo their number, and remembers whom it was
// asked about.
class FixedRouting final : public RoutingOverride {
 public:
  void Impose(int layer, std::span<const Rows> items, int top_k, std::span<int32_t> ids) override {
    for (const Rows& item : items) {
      for (int row = item.begin; row < item.end; ++row) {
        const int64_t position = item.first_position + row - item.begin;
        for (int place = 0; place < top_k; ++place) {
          ids[static_cast<size_t>(row * top_k + place)] = Expert(layer, position, place);
        }
      }
    }
  }
  static int32_t Expert(int layer, int64_t position, int place) {
    return static_cast<int32_t>((layer + position + place) % 8);
  }
};

class RecordedExperts final : public ExpertSource {
 public:
  explicit RecordedExperts(ExpertSource* from) : from_(*from) {}
  absl::StatusOr<ExpertRef> Get(int layer, int expert) override {
    used.insert({layer, expert});
    return from_.Get(layer, expert);
  }
  std::set<std::pair<int, int>> used;

 private:
  ExpertSource& from_;
};

TEST_F(EngineTest, ImposedExpertsAreComputedWithTheRoutersWeights) {
  FixedRouting routing;
  RecordedExperts experts(experts_.get());
  ASSERT_OK_AND_ASSIGN(const auto engine,
                       Engine::Create(*checkpoint_, &experts, {.routing = &routing}));
  const auto free_engine = Make({});
  const int top_k = engine->config().experts_per_token;
  ASSERT_EQ(engine->config().n_experts % 8, 0);
  std::vector<float> ids, weights, free_ids, free_weights;
  const auto keep = [](std::vector<float>& of_ids, std::vector<float>& of_weights) {
    return [&](std::string_view name, int rows, int columns, const float* values) {
      const size_t n = static_cast<size_t>(rows) * static_cast<size_t>(columns);
      if (name == "layers.0.router.topk_ids") of_ids.assign(values, values + n);
      if (name == "layers.0.router.topk_weights") of_weights.assign(values, values + n);
    };
  };
  engine->SetObserver(keep(ids, weights));
  free_engine->SetObserver(keep(free_ids, free_weights));
  const auto prompt = Ids(5, 1);
  const auto a = engine->NewSequence(), b = engine->NewSequence();
  StepLogits logits, free_logits;
  const StepItem first{a.get(), prompt, LogitsWanted::kLast};
  ASSERT_OK(engine->Step({&first, 1}, &logits));
  const auto free_state = free_engine->NewSequence();
  const StepItem free_first{free_state.get(), prompt, LogitsWanted::kLast};
  ASSERT_OK(free_engine->Step({&free_first, 1}, &free_logits));
  ASSERT_EQ(ids.size(), 5U * static_cast<size_t>(top_k));
  for (int row = 0; row < 5; ++row) {
    for (int place = 0; place < top_k; ++place) {
      EXPECT_EQ(ids[static_cast<size_t>(row * top_k + place)], FixedRouting::Expert(0, row, place));
    }
  }
  EXPECT_EQ(weights, free_weights);  // layer 0's router saw the same input
  EXPECT_NE(ids, free_ids);
  EXPECT_NE(logits.values, free_logits.values);

  // Positions go on, and each item has its own.
  experts.used.clear();
  const StepItem both[] = {{b.get(), std::span(prompt).first(1), LogitsWanted::kLast},
                           {a.get(), std::span(prompt).first(1), LogitsWanted::kLast}};
  ASSERT_OK(engine->Step(both, &logits));
  for (int layer = 0; layer < engine->config().n_layers; ++layer) {
    std::set<int32_t> want, got;
    for (int place = 0; place < top_k; ++place) {
      want.insert(FixedRouting::Expert(layer, 0, place));
      want.insert(FixedRouting::Expert(layer, 5, place));
    }
    for (const auto& [of_layer, expert] : experts.used) {
      if (of_layer == layer) got.insert(expert);
    }
    EXPECT_EQ(got, want) << "layer " << layer;
  }
}

TEST_F(EngineTest, AFilledContextTakesItsPagesAndIsComputedWith) {
  const auto engine = Make({.page_tokens = 16, .kv_tokens = 128});
  const auto filled = engine->NewSequence(), other = engine->NewSequence();
  ASSERT_OK(engine->FillContext(filled.get(), 100, 1));
  EXPECT_EQ(filled->n_tokens(), 100);
  EXPECT_EQ(engine->pages_free(), 1);
  EXPECT_THAT(engine->FillContext(other.get(), 17, 1),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("needs 2 KV pages, 1")));
  EXPECT_THAT(engine->FillContext(filled.get(), 1, 1),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("only a new sequence")));
  const auto ids = Ids(1, 1);
  const StepItem items[] = {{filled.get(), ids, LogitsWanted::kLast},
                            {other.get(), ids, LogitsWanted::kLast}};
  StepLogits logits;
  ASSERT_OK(engine->Step(items, &logits));
  EXPECT_EQ(filled->n_tokens(), 101);
  const auto with = logits.Row(0, 512), without = logits.Row(1, 512);
  EXPECT_FALSE(std::equal(with.begin(), with.end(), without.begin()));
  for (const float value : with) ASSERT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace hearth::worker
