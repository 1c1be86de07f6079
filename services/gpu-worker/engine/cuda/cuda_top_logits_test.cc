// Rows by their largest logits: what a step of the CUDA engine gives of them is what its whole rows
// say, in any mixture of prompts and decodes, and the sampler chooses the same tokens from both.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/testing/source_dir.h"
#include "services/gpu-worker/engine/cuda/cuda_engine_testing.h"
#include "services/gpu-worker/sampling/sampler.h"
#include "services/gpu-worker/sampling/top_logits_testing.h"
#include "services/gpu-worker/scheduler/batch.h"
#include "services/gpu-worker/scheduler/testing.h"

namespace hearth::worker {
namespace {

class CudaTopLogits : public CudaEngineTest {
 protected:
  void SetUp() override {
    CudaEngineTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ASSERT_NO_FATAL_FAILURE(Open("models/demo"));
  }

  void ExpectTopOf(const TopLogitsRow& got, std::span<const float> whole, float temperature) const {
    const TopLogitsRow want = testing::TopOf(whole, temperature);
    ASSERT_EQ(got.flags, TopLogitsRow::kFine);
    ASSERT_EQ(got.n, want.n);
    for (int i = 0; i < want.n; ++i) {
      ASSERT_EQ(got.ids[i], want.ids[i]) << "place " << i;
      ASSERT_EQ(got.logits[i], want.logits[i]) << "place " << i;
    }
    EXPECT_EQ(got.temperature, want.temperature);
    EXPECT_NEAR(got.weight_sum, want.weight_sum, kWeightSumError * want.weight_sum);
  }
};

// Twelve sequences: two batches of decodes behind short and long prompts, of which some want no
// logits, some those of the last row, and one those of all.
TEST_F(CudaTopLogits, EveryRowOfAMixedStepIsThatOfAStepOfWholeRows) {
  const auto by_top = Make({.max_sequences = 14}), whole = Make({.max_sequences = 14});
  ASSERT_NE(by_top, nullptr);
  ASSERT_NE(whole, nullptr);
  std::vector<std::unique_ptr<SequenceState>> states, whole_states;
  std::vector<std::vector<int32_t>> tokens(12);
  for (int round = 0; round < 4; ++round) {
    std::vector<StepItem> items, whole_items;
    std::vector<float> temperatures;  // of the rows
    for (size_t s = 0; s < 12; ++s) {
      if (states.size() == s) {
        states.push_back(by_top->NewSequence());
        whole_states.push_back(whole->NewSequence());
      }
      // In the first round all are read, later but the second and the last.
      const bool reads = round == 0 || s == 1 || s == 11;
      tokens[s] = Ids(reads ? 3 + 5 * static_cast<int>(s) : 1, static_cast<int>(s) + 20 * round);
      const auto wanted = s == 4   ? LogitsWanted::kNone
                          : s == 0 ? LogitsWanted::kAll
                                   : LogitsWanted::kLast;
      const float temperature = 0.25f * static_cast<float>(s);
      items.push_back({states[s].get(), tokens[s], wanted, 0, temperature});
      whole_items.push_back({whole_states[s].get(), tokens[s], wanted});
      const size_t n_rows = wanted == LogitsWanted::kNone  ? 0
                            : wanted == LogitsWanted::kAll ? tokens[s].size()
                                                           : 1;
      temperatures.insert(temperatures.end(), n_rows, temperature);
    }
    StepLogits got, want;
    ASSERT_OK(by_top->Step(items, &got));
    ASSERT_OK(whole->Step(whole_items, &want));
    ASSERT_EQ(got.n_rows, static_cast<int>(temperatures.size()));
    ASSERT_EQ(got.top.size(), temperatures.size());
    EXPECT_TRUE(got.values.empty());
    EXPECT_TRUE(want.top.empty());
    for (int row = got.n_rows - 1; row >= 0; --row) {
      SCOPED_TRACE(absl::StrCat("round ", round, ", row ", row));
      ASSERT_OK_AND_ASSIGN(const auto values, by_top->ReadLogits(row));
      ASSERT_TRUE(std::ranges::equal(values, want.Row(row, vocabulary())));
      ASSERT_NO_FATAL_FAILURE(ExpectTopOf(got.top[static_cast<size_t>(row)], values,
                                          temperatures[static_cast<size_t>(row)]));
    }
    EXPECT_FALSE(by_top->ReadLogits(got.n_rows).ok());
    EXPECT_FALSE(whole->ReadLogits(0).ok());
  }
}

TEST_F(CudaTopLogits, AnItemWithoutATemperatureMakesAllRowsWhole) {
  const auto engine = Make();
  ASSERT_NE(engine, nullptr);
  const auto a = engine->NewSequence(), b = engine->NewSequence(), c = engine->NewSequence();
  const auto ids = Ids(40, 1);
  const StepItem items[] = {{a.get(), std::span(ids).first(1), LogitsWanted::kLast, 0, 1.f},
                            {b.get(), std::span(ids).first(1)}};
  StepLogits logits;
  ASSERT_OK(engine->Step(items, &logits));
  EXPECT_TRUE(logits.top.empty());
  EXPECT_EQ(logits.values.size(), 2 * static_cast<size_t>(vocabulary()));
  // So do more rows of a prompt than are kept.
  const StepItem many{c.get(), ids, LogitsWanted::kAll, 0, 1.f};
  ASSERT_OK(engine->Step({&many, 1}, &logits));
  EXPECT_TRUE(logits.top.empty());
  EXPECT_EQ(logits.values.size(), 40 * static_cast<size_t>(vocabulary()));
  // And one that wants none doesn't.
  const StepItem others[] = {{a.get(), std::span(ids).first(1), LogitsWanted::kLast, 0, 1.f},
                             {b.get(), std::span(ids).first(1), LogitsWanted::kNone}};
  ASSERT_OK(engine->Step(others, &logits));
  EXPECT_EQ(logits.top.size(), 1u);
  EXPECT_TRUE(logits.values.empty());
}

// And with the rows of a step that checks them, of sequences with one guess and with two.
TEST_F(CudaTopLogits, GuessesAreGivenByTheirLargestToo) {
  const auto by_top = Make({.max_drafts = 2}), whole = Make({.max_drafts = 2});
  ASSERT_NE(by_top, nullptr);
  ASSERT_NE(whole, nullptr);
  constexpr size_t kSequences = 5;
  std::vector<std::unique_ptr<SequenceState>> states, whole_states;
  for (size_t s = 0; s < kSequences; ++s) {
    const auto prompt = Ids(9 + static_cast<int>(s), static_cast<int>(s));
    states.push_back(by_top->NewSequence());
    whole_states.push_back(whole->NewSequence());
    ASSERT_OK(Feed(*by_top, *states.back(), prompt));
    ASSERT_OK(Feed(*whole, *whole_states.back(), prompt));
  }
  const auto expect_same = [&](const StepLogits& got, const StepLogits& want) {
    ASSERT_EQ(got.n_rows, want.n_rows);
    ASSERT_EQ(got.top.size(), static_cast<size_t>(want.n_rows));
    EXPECT_TRUE(got.values.empty());
    for (int row = 0; row < got.n_rows; ++row) {
      SCOPED_TRACE(absl::StrCat("row ", row));
      ASSERT_OK_AND_ASSIGN(const auto values, by_top->ReadLogits(row));
      ASSERT_TRUE(std::ranges::equal(values, want.Row(row, vocabulary())));
      ASSERT_NO_FATAL_FAILURE(ExpectTopOf(got.top[static_cast<size_t>(row)], values, 0.5f));
    }
  };
  StepLogits got, want;
  for (int depth = 0; depth < 2; ++depth) {
    std::vector<DraftItem> items, whole_items;
    for (size_t s = 0; s < kSequences; ++s) {
      items.push_back({states[s].get(), 7 + depth, 0.5f});
      whole_items.push_back({whole_states[s].get(), 7 + depth});
    }
    ASSERT_OK(by_top->Draft(items, depth, &got));
    ASSERT_OK(whole->Draft(whole_items, depth, &want));
    ASSERT_NO_FATAL_FAILURE(expect_same(got, want)) << "draft " << depth;
  }
  const std::vector<int32_t> tokens = {7, 8, 9};
  std::vector<StepItem> items, whole_items;
  for (size_t s = 0; s < kSequences; ++s) {
    const int n_drafts = s % 2 == 0 ? 1 : 2;
    const auto of = std::span(tokens).first(static_cast<size_t>(n_drafts) + 1);
    items.push_back({states[s].get(), of, LogitsWanted::kAll, n_drafts, 0.5f});
    whole_items.push_back({whole_states[s].get(), of, LogitsWanted::kAll, n_drafts});
  }
  ASSERT_OK(by_top->Step(items, &got));
  ASSERT_OK(whole->Step(whole_items, &want));
  ASSERT_EQ(got.n_rows, 3 * 2 + 2 * 3);
  ASSERT_NO_FATAL_FAILURE(expect_same(got, want));
}

TEST_F(CudaTopLogits, TheSamplerChoosesTheSameTokensFromBoth) {
  const auto engine = Make();
  ASSERT_NE(engine, nullptr);
  constexpr size_t kSequences = 8;
  std::mt19937 random(3);
  Sampler sampler;
  std::vector<std::unique_ptr<SequenceState>> states;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<TokenCounts> counts(kSequences);
  for (size_t s = 0; s < kSequences; ++s) {
    states.push_back(engine->NewSequence());
    tokens.push_back(Ids(5 + 9 * static_cast<int>(s), static_cast<int>(s)));
    counts[s].AddPrompt(tokens[s]);
  }
  int n_asked = 0, n_fetched = 0;
  for (uint64_t position = 0; position < 24; ++position) {
    std::vector<SamplingParams> params;
    std::vector<StepItem> items;
    for (size_t s = 0; s < kSequences; ++s) {
      params.push_back(testing::RandomParams(random, 300));
      if (random() % 8 == 0) params[s].logprobs = 3;
      items.push_back({states[s].get(), tokens[s], LogitsWanted::kLast, 0, params[s].temperature});
    }
    StepLogits logits;
    ASSERT_OK(engine->Step(items, &logits));
    ASSERT_EQ(logits.top.size(), kSequences);
    for (size_t s = 0; s < kSequences; ++s) {
      ASSERT_OK_AND_ASSIGN(const auto values, engine->ReadLogits(static_cast<int>(s)));
      const std::vector<float> whole(values.begin(), values.end());
      const LogitsRow row(&logits.top[s], vocabulary(), [&] {
        ++n_fetched;
        return engine->ReadLogits(static_cast<int>(s));
      });
      for (int i = 0; i < 20; ++i) {
        params[s].seed = random();
        ++n_asked;
        ASSERT_OK_AND_ASSIGN(const SampledToken got,
                             sampler.Sample(params[s], counts[s], position, row));
        ASSERT_OK_AND_ASSIGN(const SampledToken want,
                             sampler.Sample(params[s], counts[s], position, whole));
        ASSERT_EQ(got.id, want.id) << "sequence " << s << " at " << position;
        ASSERT_EQ(got.logprob, want.logprob);
        tokens[s] = {got.id};
      }
      counts[s].AddOutput(tokens[s].front());
    }
  }
  EXPECT_GT(n_fetched, 0);
  EXPECT_LT(n_fetched, n_asked);
}

// An engine that is asked for whole rows by whoever asks this one.
class WholeRows final : public Engine {
 public:
  explicit WholeRows(Engine& engine) : engine_(engine) {}
  const ModelConfig& config() const override { return engine_.config(); }
  std::string_view backend() const override { return engine_.backend(); }
  std::unique_ptr<SequenceState> NewSequence() override { return engine_.NewSequence(); }
  int64_t PagesNeeded(const SequenceState& state, int64_t n) const override {
    return engine_.PagesNeeded(state, n);
  }
  int64_t pages_free() const override { return engine_.pages_free(); }
  int64_t pages_total() const override { return engine_.pages_total(); }
  absl::Status Step(std::span<const StepItem> items, StepLogits* logits) override {
    std::vector<StepItem> whole(items.begin(), items.end());
    for (StepItem& item : whole) item.temperature.reset();
    return engine_.Step(whole, logits);
  }
  uint64_t progress() const override { return engine_.progress(); }
  void Interrupt() override { engine_.Interrupt(); }
  void ClearInterrupt() override { engine_.ClearInterrupt(); }
  absl::Status ReadDeltaState(const SequenceState& state, int layer, std::vector<float>* conv,
                              std::vector<float>* recurrent) const override {
    return engine_.ReadDeltaState(state, layer, conv, recurrent);
  }
  void SetObserver(TensorObserver observer) override { engine_.SetObserver(std::move(observer)); }

 private:
  Engine& engine_;
};

// Prompts of several lengths, read while others decode, with whatever requests may ask for.
TEST_F(CudaTopLogits, TextsAreThoseOfWholeRows) {
  const auto engine = Make({.max_sequences = 6});
  ASSERT_NE(engine, nullptr);
  WholeRows whole(*engine);
  ASSERT_OK_AND_ASSIGN(const auto tokenizer,
                       Tokenizer::Load(std::filesystem::path(hearth::testing::SourceDir()) /
                                       "models/demo/tokenizer.json"));
  std::mt19937 random(9);
  std::vector<GenerationRequest> requests(40);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = Ids(3 + 11 * static_cast<int>(i % 9), static_cast<int>(i));
    requests[i].sampling = testing::RandomParams(random, 300);
    if (i % 7 == 0) requests[i].sampling.logprobs = 4;
    requests[i].max_tokens = 12;
    requests[i].return_token_ids = true;
  }
  const auto answers = [&](Engine& asked) {
    SchedulerObserver observer;
    ContinuousBatch batch(asked, {.max_sequences = 6}, observer);
    std::vector<std::shared_ptr<OutputStream>> streams;
    for (const GenerationRequest& request : requests) {
      streams.push_back(std::make_shared<OutputStream>(nullptr, 1000));
      batch.Add(std::make_unique<Sequence>(request, streams.back(), *tokenizer, 400, Clock::now()));
    }
    while (batch.Step(Clock::now())) {
    }
    std::vector<testing::Received> received(streams.size());
    for (size_t i = 0; i < streams.size(); ++i) received[i].TakeAll(*streams[i]);
    return received;
  };
  const auto want = answers(whole), got = answers(*engine);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_OK(got[i].error);
    EXPECT_EQ(got[i].ids, want[i].ids) << "request " << i;
    ASSERT_EQ(got[i].logprobs.size(), want[i].logprobs.size());
    for (size_t k = 0; k < got[i].logprobs.size(); ++k) {
      EXPECT_EQ(got[i].logprobs[k].logprob, want[i].logprobs[k].logprob);
    }
    EXPECT_EQ(got[i].ids.size(), 12u);
  }
}

}  // namespace
}  // namespace hearth::worker
