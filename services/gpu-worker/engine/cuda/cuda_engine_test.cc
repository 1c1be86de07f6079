// What the CUDA engine computes, against the float32 engine and against itself: with any number of
// expert slots, in any company, read in any pieces.
#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "services/gpu-worker/engine/cuda/cuda_engine_testing.h"

namespace hearth::worker {
namespace {

absl::StatusOr<std::unique_ptr<Engine>> Float32(const Checkpoint& checkpoint,
                                                ExpertSource* experts) {
  return Engine::Create(checkpoint, experts, {.n_threads = 4, .exact = true});
}

struct Slots {
  const char* name;
  int64_t n;
};

class AnySlots : public CudaEngineTest,
                 public ::testing::WithParamInterface<std::tuple<const char*, Slots>> {};

TEST_P(AnySlots, LogitsAreFloat32sWithinTheFastTolerance) {
  const auto& [model, slots] = GetParam();
  ASSERT_NO_FATAL_FAILURE(Open(model));
  CheckpointExperts plain(checkpoint_.get());
  ASSERT_OK_AND_ASSIGN(const auto reference, Float32(*checkpoint_, &plain));
  // "recency" admits whatever was missed: few slots change their experts all the time.
  const auto engine = Make({.expert_slots = slots.n, .cache_policy = "recency"});
  ASSERT_NE(engine, nullptr);
  constexpr int kMore = 24;
  for (int seed = 1; seed <= 2; ++seed) {
    const auto prompt = Ids(20, seed);
    ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*reference, prompt, kMore));
    ASSERT_OK_AND_ASSIGN(const Answer got, Continue(*engine, prompt, kMore, 4096, want.tokens));
    EXPECT_LE(RelativeRms(got.logits, want.logits), kFastRms);
    const auto width = static_cast<size_t>(vocabulary());
    for (size_t i = 0; i < got.logits.size(); i += width) {
      const auto row = [&](const Logits& all) {
        return Logits(all.begin() + static_cast<int64_t>(i),
                      all.begin() + static_cast<int64_t>(i + width));
      };
      EXPECT_LE(RelativeRms(row(got.logits), row(want.logits)), 4 * kFastRms)
          << "step " << i / width;
    }
  }
  const CacheStatistics cache = engine->expert_tier()->Statistics().cache;
  uint64_t hits = 0, misses = 0, evictions = 0;
  for (const LayerCounts& layer : cache.layers) {
    hits += layer.hits, misses += layer.misses, evictions += layer.evictions;
  }
  EXPECT_EQ(hits > 0, slots.n != 0);
  EXPECT_EQ(misses > 0, slots.n >= 0);
  EXPECT_EQ(evictions > 100, slots.n > 0) << evictions;
}

INSTANTIATE_TEST_SUITE_P(Models, AnySlots,
                         ::testing::Combine(::testing::Values("tests/golden/tiny-a",
                                                              "tests/golden/tiny-b", "models/demo"),
                                            ::testing::Values(Slots{"none", 0}, Slots{"few", 8},
                                                              Slots{"all", -1})),
                         [](const auto& param) {
                           const std::string model = std::get<0>(param.param);
                           std::string name = model.substr(model.rfind('/') + 1) + "_" +
                                              std::get<1>(param.param).name;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

// Without slots everything is missed: the CPU computes it, and the GPU reads its part from RAM.
TEST_F(CudaEngineTest, MissesAreDividedBetweenTheCpuAndTheGpu) {
  ASSERT_NO_FATAL_FAILURE(Open("tests/golden/tiny-b"));
  CheckpointExperts plain(checkpoint_.get());
  ASSERT_OK_AND_ASSIGN(const auto reference, Float32(*checkpoint_, &plain));
  const auto prompt = Ids(20, 3);
  ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*reference, prompt, 40));
  for (const bool divides : {true, false}) {
    const auto engine = Make({.expert_slots = 0, .divide_misses = divides});
    ASSERT_NE(engine, nullptr);
    const auto state = engine->NewSequence();
    ASSERT_OK_AND_ASSIGN(Logits all, Feed(*engine, *state, prompt));
    const TierStatistics before = engine->expert_tier()->Statistics();
    for (const int32_t token : want.tokens) {
      ASSERT_OK_AND_ASSIGN(const Logits last, Feed(*engine, *state, {&token, 1}));
      all.insert(all.end(), last.begin(), last.end());
    }
    EXPECT_LE(RelativeRms(all, want.logits), kFastRms);
    const TierStatistics after = engine->expert_tier()->Statistics();
    const uint64_t in_place = after.work.in_place_bytes - before.work.in_place_bytes;
    EXPECT_EQ(in_place > 0, divides);
    uint64_t misses = 0;
    for (size_t layer = 0; layer < after.cache.layers.size(); ++layer) {
      misses += after.cache.layers[layer].misses - before.cache.layers[layer].misses;
    }
    EXPECT_EQ((in_place + after.work.cpu_bytes - before.work.cpu_bytes) / after.slot_bytes, misses);
  }
}

// Experts in bf16, which no kernel reads: all of them are the CPU's, for any number of rows.
TEST_F(CudaEngineTest, ExpertsThatCannotBeCachedAreTheCpus) {
  ASSERT_NO_FATAL_FAILURE(Open("tests/golden/tiny-a-bf16"));
  CheckpointExperts plain(checkpoint_.get());
  ASSERT_OK_AND_ASSIGN(const auto reference, Float32(*checkpoint_, &plain));
  const auto engine = Make();
  ASSERT_NE(engine, nullptr);
  EXPECT_THAT(engine->memory_table(), ::testing::HasSubstr("experts (0 of 64)"));
  for (const int n : {1, 40, 300}) {
    const auto prompt = Ids(n, 2);
    ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*reference, prompt, 8));
    ASSERT_OK_AND_ASSIGN(const Answer got, Continue(*engine, prompt, 8, 4096, want.tokens));
    EXPECT_LE(RelativeRms(got.logits, want.logits), kFastRms) << n << " rows";
  }
}

TEST_F(CudaEngineTest, WithExactArithmeticItAgreesWithTheFloat32Engine) {
  ASSERT_NO_FATAL_FAILURE(Open("tests/golden/tiny-b"));
  CheckpointExperts plain(checkpoint_.get());
  ASSERT_OK_AND_ASSIGN(const auto reference, Float32(*checkpoint_, &plain));
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create(*checkpoint_, &plain,
                                                         {.backend = BackendKind::kCuda,
                                                          .n_threads = 4,
                                                          .exact = true,
                                                          .vram_bytes = uint64_t{4} << 30}));
  const auto prompt = Ids(50, 1);
  ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*reference, prompt, 20));
  ASSERT_OK_AND_ASSIGN(const Answer got, Continue(*engine, prompt, 20, 4096, want.tokens));
  EXPECT_LE(RelativeRms(got.logits, want.logits), 1e-3);
}

class CudaEngineDemo : public CudaEngineTest {
 protected:
  void SetUp() override {
    CudaEngineTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ASSERT_NO_FATAL_FAILURE(Open("models/demo"));
  }
};

TEST_F(CudaEngineDemo, SequencesInABatchOfEightGiveTheTokensThatTheyGiveAlone) {
  const auto engine = Make();
  ASSERT_NE(engine, nullptr);
  constexpr int kSequences = 8, kMore = 16;
  std::vector<Answer> alone;
  std::vector<std::unique_ptr<SequenceState>> states;
  std::vector<std::vector<int32_t>> together(kSequences);
  std::vector<int32_t> next;
  for (int s = 0; s < kSequences; ++s) {
    const auto prompt = Ids(9 + 5 * s, s);
    ASSERT_OK_AND_ASSIGN(alone.emplace_back(), Continue(*engine, prompt, kMore));
    states.push_back(engine->NewSequence());
    ASSERT_OK_AND_ASSIGN(const Logits last, Feed(*engine, *states.back(), prompt));
    next.push_back(Likeliest(last));
  }
  for (int step = 0; step < kMore; ++step) {
    std::vector<StepItem> items;
    for (size_t s = 0; s < kSequences; ++s) {
      items.push_back({.state = states[s].get(), .tokens = {&next[s], 1}});
      together[s].push_back(next[s]);
    }
    StepLogits logits;
    ASSERT_OK(engine->Step(items, &logits));
    for (int s = 0; s < kSequences; ++s) {
      next[static_cast<size_t>(s)] = Likeliest(logits.Row(s, vocabulary()));
    }
  }
  std::set<std::vector<int32_t>> different;
  for (size_t s = 0; s < kSequences; ++s) {
    EXPECT_EQ(together[s], alone[s].tokens) << "sequence " << s;
    different.insert(together[s]);
  }
  EXPECT_GT(different.size(), 4u);
}

TEST_F(CudaEngineDemo, AStepMayReadPromptsAndDecodeInAnyOrder) {
  const auto engine = Make();
  ASSERT_NE(engine, nullptr);
  const auto a_ids = Ids(12, 1), b_ids = Ids(30, 2), c_ids = Ids(7, 3), d_ids = Ids(5, 4);
  const int32_t a_next = 11, c_next = 12;
  const auto alone = [&](const std::vector<int32_t>& ids, int32_t next) {
    const std::vector<int32_t> forced = {next};
    auto answer = Continue(*engine, ids, next < 0 ? 0 : 1, 4096, forced);
    EXPECT_OK(answer);
    const auto last = answer->logits.end() - vocabulary();
    return Logits(last, answer->logits.end());
  };
  const Logits a_want = alone(a_ids, a_next), b_want = alone(b_ids, -1),
               c_want = alone(c_ids, c_next), d_want = alone(d_ids, -1);
  const auto a = engine->NewSequence(), b = engine->NewSequence(), c = engine->NewSequence(),
             d = engine->NewSequence(), e = engine->NewSequence();
  ASSERT_OK(Feed(*engine, *a, a_ids));
  ASSERT_OK(Feed(*engine, *c, c_ids));
  ASSERT_OK(Feed(*engine, *e, c_ids));
  const StepItem items[] = {{a.get(), {&a_next, 1}},
                            {b.get(), b_ids},
                            {e.get(), {&a_next, 1}, LogitsWanted::kNone},
                            {c.get(), {&c_next, 1}},
                            {d.get(), d_ids, LogitsWanted::kAll}};
  StepLogits logits;
  ASSERT_OK(engine->Step(items, &logits));
  ASSERT_EQ(logits.n_rows, 1 + 1 + 1 + 5);
  const auto row = [&](int i) {
    const auto values = logits.Row(i, vocabulary());
    return Logits(values.begin(), values.end());
  };
  EXPECT_LT(RelativeRms(row(0), a_want), 1e-4);
  EXPECT_LT(RelativeRms(row(1), b_want), 1e-4);
  EXPECT_LT(RelativeRms(row(2), c_want), 1e-4);
  EXPECT_LT(RelativeRms(row(7), d_want), 1e-4);
  EXPECT_GT(RelativeRms(a_want, c_want), 0.1);
  EXPECT_EQ(e->n_tokens(), 8);
}

TEST_F(CudaEngineDemo, ALongPromptWithStreamedExpertsIsReadAsInSmallPieces) {
  CheckpointExperts plain(checkpoint_.get());
  ASSERT_OK_AND_ASSIGN(const auto reference, Float32(*checkpoint_, &plain));
  const auto prompt = Ids(500, 3);  // more rows than the CPU is asked for
  ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*reference, prompt, 3));
  for (const int64_t slots : {0, 16, -1}) {
    const auto engine = Make({.expert_slots = slots});
    ASSERT_NE(engine, nullptr);
    const uint64_t before = engine->progress();
    ASSERT_OK_AND_ASSIGN(const Answer whole, Continue(*engine, prompt, 0));
    EXPECT_GE(engine->progress() - before, 8u) << "a layer at least is a sign of life";
    const uint64_t streamed = engine->expert_tier()->Statistics().work.pcie_bytes;
    EXPECT_GT(streamed, 0u);
    EXPECT_EQ(engine->expert_tier()->Statistics().work.cpu_bytes > 0, slots >= 0)
        << "the CPU helps where some are not in VRAM";
    ASSERT_OK_AND_ASSIGN(const Answer in_pieces, Continue(*engine, prompt, 3, 64, want.tokens));
    ASSERT_OK_AND_ASSIGN(const Answer in_one, Continue(*engine, prompt, 3, 4096, want.tokens));
    EXPECT_LE(RelativeRms(in_pieces.logits, want.logits), kFastRms) << slots;
    EXPECT_LE(RelativeRms(in_one.logits, want.logits), kFastRms) << slots;
    EXPECT_LE(RelativeRms(in_one.logits, in_pieces.logits), kFastRms) << slots;
  }
}

// A prompt that says the same again and again chooses few experts: once one of its size was seen,
// only those are streamed.
TEST_F(CudaEngineDemo, ALongPromptOfFewExpertsStreamsThoseOnly) {
  CheckpointExperts plain(checkpoint_.get());
  ASSERT_OK_AND_ASSIGN(const auto reference, Float32(*checkpoint_, &plain));
  const std::vector<int32_t> prompt(300, Ids(1, 7).front());
  ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*reference, prompt, 2));
  for (const bool divides : {false, true}) {
    const auto engine = Make({.expert_slots = 0, .divide_misses = divides});
    ASSERT_NE(engine, nullptr);
    std::vector<uint64_t> copied = {0};
    for (int i = 0; i < 3; ++i) {
      ASSERT_OK_AND_ASSIGN(const Answer got, Continue(*engine, prompt, 2, 4096, want.tokens));
      EXPECT_LE(RelativeRms(got.logits, want.logits), kFastRms) << i;
      copied.push_back(engine->expert_tier()->Statistics().work.pcie_bytes);
    }
    EXPECT_LT(copied[2] - copied[1], copied[1] / 2);
    EXPECT_LT(copied[3] - copied[2], copied[1] / 2);
  }
}

TEST_F(CudaEngineDemo, PoliciesChangeWhileItRuns) {
  CheckpointExperts plain(checkpoint_.get());
  ASSERT_OK_AND_ASSIGN(const auto reference, Float32(*checkpoint_, &plain));
  const auto engine = Make({.expert_slots = 20});
  ASSERT_NE(engine, nullptr);
  engine->expert_tier()->SetProfile({{0, 1, 5}, {3, 2, 9}});
  const auto prompt = Ids(15, 5);
  ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*reference, prompt, 40));
  const auto state = engine->NewSequence();
  ASSERT_OK_AND_ASSIGN(Logits all, Feed(*engine, *state, prompt));
  for (size_t i = 0; i < want.tokens.size(); ++i) {
    const std::string_view policy = PolicyNames()[i / 4 % PolicyNames().size()];
    if (i % 4 == 0) {
      ASSERT_OK(engine->expert_tier()->SetPolicy(policy));
    } else {
      EXPECT_EQ(engine->expert_tier()->Statistics().cache.policy, policy);
    }
    ASSERT_OK_AND_ASSIGN(const Logits last, Feed(*engine, *state, {&want.tokens[i], 1}));
    all.insert(all.end(), last.begin(), last.end());
  }
  EXPECT_LE(RelativeRms(all, want.logits), kFastRms);
}

class CudaEngineTiny : public CudaEngineTest {
 protected:
  void SetUp() override {
    CudaEngineTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ASSERT_NO_FATAL_FAILURE(Open("tests/golden/tiny-a"));
  }
};

TEST_F(CudaEngineTiny, AFilledContextIsTheSameEachTimeAndIsComputedWith) {
  const auto engine = Make({.kv_tokens = 4096});
  ASSERT_NE(engine, nullptr);
  const int64_t free = engine->pages_free();
  const auto fill = [&](int64_t n_tokens, uint64_t seed) -> absl::StatusOr<Logits> {
    const auto state = engine->NewSequence();
    if (const auto filled = engine->FillContext(state.get(), n_tokens, seed); !filled.ok()) {
      return filled;
    }
    EXPECT_EQ(state->n_tokens(), n_tokens);
    EXPECT_EQ(engine->pages_free(), free - (n_tokens + 63) / 64);
    const auto ids = Ids(2, 1);
    const auto first = Feed(*engine, *state, std::span(ids).first(1));
    return first.ok() ? Feed(*engine, *state, std::span(ids).last(1)) : first;
  };
  ASSERT_OK_AND_ASSIGN(const Logits once, fill(1000, 1));
  ASSERT_OK_AND_ASSIGN(const Logits again, fill(1000, 1));
  ASSERT_OK_AND_ASSIGN(const Logits other, fill(1000, 2));
  EXPECT_EQ(once, again);
  EXPECT_NE(once, other);
  EXPECT_TRUE(std::ranges::all_of(once, [](float value) { return std::isfinite(value); }));
  EXPECT_EQ(engine->pages_free(), free);
  EXPECT_THAT(fill(4097, 1), hearth::testing::IsStatus(absl::StatusCode::kResourceExhausted,
                                                       ::testing::HasSubstr("65 KV pages")));
}

// A graph for each size, and another from the 1025th position on: as the same calls one by one.
TEST_F(CudaEngineTiny, GraphsOfEverySizeComputeWhatTheirCallsDo) {
  const auto graphs = Make({.kv_tokens = 8 * 1152}), calls = Make({.kv_tokens = 8 * 1152});
  ASSERT_NE(graphs, nullptr);
  ASSERT_NE(calls, nullptr);
  calls->SetObserver([](std::string_view, int, int, const float*) {});
  for (size_t n = 1; n <= 8; ++n) {
    StepLogits got, want;
    std::vector<std::unique_ptr<SequenceState>> got_states, want_states;
    for (size_t s = 0; s < n; ++s) {
      got_states.push_back(graphs->NewSequence());
      want_states.push_back(calls->NewSequence());
      ASSERT_OK(graphs->FillContext(got_states.back().get(), 1021, s));
      ASSERT_OK(calls->FillContext(want_states.back().get(), 1021, s));
    }
    for (int step = 0; step < 6; ++step) {
      const auto ids = Ids(static_cast<int>(n), step);
      std::vector<StepItem> items, others;
      for (size_t s = 0; s < n; ++s) {
        items.push_back({.state = got_states[s].get(), .tokens = {&ids[s], 1}});
        others.push_back({.state = want_states[s].get(), .tokens = {&ids[s], 1}});
      }
      ASSERT_OK(graphs->Step(items, &got));
      ASSERT_OK(calls->Step(others, &want));
      ASSERT_EQ(got.n_rows, static_cast<int>(n));
      EXPECT_EQ(got.values, want.values) << n << " sequences, step " << step;
    }
  }
}

}  // namespace
}  // namespace hearth::worker
