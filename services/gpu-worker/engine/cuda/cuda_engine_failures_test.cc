// What the CUDA engine does when something is missing, slow, replaced or too large: the step fails
// with the reason, and the next one works.
#include <atomic>
#include <chrono>
#include <thread>

#include "services/gpu-worker/engine/cuda/cuda_engine_testing.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

class CudaEngineFailures : public CudaEngineTest {
 protected:
  void SetUp() override {
    CudaEngineTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ASSERT_NO_FATAL_FAILURE(Open("tests/golden/tiny-a"));
  }

  void TakeAway(int layer) {
    for (int e = 0; e < checkpoint_->config().n_experts; ++e) experts_->not_here.insert({layer, e});
  }
  // A prompt of `n` tokens that goes on for three.
  absl::StatusOr<Answer> Run(Engine& engine, int n) { return Continue(engine, Ids(n, 1), 3); }
};

TEST_F(CudaEngineFailures, SequencesBeyondTheirPlacesAreRefusedUntilOneEnds) {
  const auto engine = Make({.max_sequences = 2});
  ASSERT_NE(engine, nullptr);
  const auto ids = Ids(3, 1);
  auto first = engine->NewSequence();
  const auto second = engine->NewSequence(), third = engine->NewSequence();
  ASSERT_OK(Feed(*engine, *first, ids));
  EXPECT_THAT(Feed(*engine, *third, ids),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("states of 2 sequences")));
  EXPECT_EQ(third->n_tokens(), 0);
  EXPECT_THAT(engine->FillContext(third.get(), 5, 1),
              IsStatus(absl::StatusCode::kResourceExhausted, ::testing::_));
  first.reset();
  EXPECT_OK(Feed(*engine, *engine->NewSequence(), ids));
  EXPECT_OK(Feed(*engine, *second, ids));
}

TEST_F(CudaEngineFailures, ExhaustedPagesRefuseTheStepAndChangeNothing) {
  const auto engine = Make({.kv_tokens = 192});  // three pages of 64
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->pages_total(), 3);
  const auto ids = Ids(129, 4);
  ASSERT_OK_AND_ASSIGN(const Answer want,
                       Continue(*engine, std::span(ids).first(128), 1, 4096, {ids.back()}));
  const auto state = engine->NewSequence(), other = engine->NewSequence();
  ASSERT_OK(Feed(*engine, *state, std::span(ids).first(128)));
  const StepItem too_many[] = {{state.get(), std::span(ids).last(1)},
                               {other.get(), std::span(ids).first(1)}};
  StepLogits logits;
  EXPECT_THAT(engine->Step(too_many, &logits),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("needs 2 KV pages, 1")));
  EXPECT_EQ(engine->pages_free(), 1);
  EXPECT_EQ(state->n_tokens(), 128);
  ASSERT_OK_AND_ASSIGN(const Logits last, Feed(*engine, *state, std::span(ids).last(1)));
  EXPECT_TRUE(std::equal(last.begin(), last.end(), want.logits.end() - vocabulary()));
}

// As decode steps, as prompts that the CPU helps with and as prompts whose experts are streamed.
TEST_F(CudaEngineFailures, AnExpertThatCannotBeHadFailsTheStepAndTheNextWorks) {
  const auto engine = Make({.expert_slots = 0, .divide_misses = false});
  ASSERT_NE(engine, nullptr);
  for (const int n : {1, 30, 300}) {
    SCOPED_TRACE(n);
    ASSERT_OK_AND_ASSIGN(const Answer want, Run(*engine, n));
    TakeAway(2);
    EXPECT_THAT(Run(*engine, n), IsStatus(absl::StatusCode::kUnavailable, ::testing::_));
    EXPECT_EQ(engine->pages_free(), engine->pages_total());
    experts_->not_here.clear();
    ASSERT_OK_AND_ASSIGN(const Answer again, Run(*engine, n));
    EXPECT_EQ(again.logits, want.logits);
  }
}

// Who is refused for want of room tries again: not with sequences that have advanced.
TEST_F(CudaEngineFailures, AStepThatHasBegunIsNotRefusedForWantOfRoom) {
  const auto engine = Make({.expert_slots = 0});
  ASSERT_NE(engine, nullptr);
  TakeAway(1);
  experts_->refusal = absl::ResourceExhaustedError("no room for experts");
  EXPECT_THAT(Run(*engine, 30),
              IsStatus(absl::StatusCode::kInternal, HasSubstr("no room for experts")));
}

TEST_F(CudaEngineFailures, ExpertsThatCannotBeHadLeaveTheOthersTheirSlots) {
  experts_->not_here = {{0, 3}, {2, 0}, {3, 15}};
  const auto engine = Make();
  ASSERT_NE(engine, nullptr);
  Run(*engine, 1).status().IgnoreError();  // may have chosen one of them
  experts_->not_here.clear();
  ASSERT_OK(Run(*engine, 1));
  const CacheStatistics cache = engine->expert_tier()->Statistics().cache;
  EXPECT_EQ(cache.abandoned, 3u);
  EXPECT_GE(cache.slots_resident + cache.slots_loading, 4 * 16 - 3);
}

TEST_F(CudaEngineFailures, AnInterruptEndsTheStepAndTheNextWorks) {
  const auto engine = Make({.expert_slots = 0, .divide_misses = false});
  ASSERT_NE(engine, nullptr);
  for (const int n : {1, 30}) {
    SCOPED_TRACE(n);
    ASSERT_OK_AND_ASSIGN(const Answer want, Run(*engine, n));
    experts_->on_get = [&] { engine->Interrupt(); };
    EXPECT_THAT(Run(*engine, n), IsStatus(absl::StatusCode::kCancelled, ::testing::_));
    experts_->on_get = nullptr;
    engine->ClearInterrupt();
    ASSERT_OK_AND_ASSIGN(const Answer again, Run(*engine, n));
    EXPECT_EQ(again.logits, want.logits);
  }
  // Between streamed layers, where nobody is asked for an expert.
  ASSERT_OK_AND_ASSIGN(const Answer want, Run(*engine, 300));
  engine->Interrupt();
  EXPECT_THAT(Run(*engine, 300), IsStatus(absl::StatusCode::kCancelled, ::testing::_));
  engine->ClearInterrupt();
  ASSERT_OK_AND_ASSIGN(const Answer again, Run(*engine, 300));
  EXPECT_EQ(again.logits, want.logits);
}

TEST_F(CudaEngineFailures, SlowExpertsChangeNothing) {
  const auto engine = Make({.expert_slots = 0, .divide_misses = false});
  ASSERT_NE(engine, nullptr);
  ASSERT_OK_AND_ASSIGN(const Answer want, Run(*engine, 1));
  int n_gets = 0;
  experts_->on_get = [&] {
    if (++n_gets % 4 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  };
  ASSERT_OK_AND_ASSIGN(const Answer slow, Run(*engine, 1));
  EXPECT_EQ(slow.logits, want.logits);
  EXPECT_GE(n_gets, 4 * 4 * 4);  // steps, layers, experts
}

TEST_F(CudaEngineFailures, AWaitThatIsTooLongFailsTheStepAndTheNextWorks) {
  const auto engine = Make(
      {.expert_slots = 0, .expert_wait = std::chrono::milliseconds(100), .divide_misses = false});
  ASSERT_NE(engine, nullptr);
  for (const int n : {1, 30}) {
    SCOPED_TRACE(n);
    ASSERT_OK_AND_ASSIGN(const Answer want, Run(*engine, n));
    bool has_slept = false;
    experts_->on_get = [&] {
      if (!std::exchange(has_slept, true)) {
        std::this_thread::sleep_for(std::chrono::milliseconds(400));
      }
    };
    EXPECT_THAT(Run(*engine, n),
                IsStatus(absl::StatusCode::kInternal, HasSubstr("waited too long")));
    experts_->on_get = nullptr;
    ASSERT_OK_AND_ASSIGN(const Answer again, Run(*engine, n));
    EXPECT_EQ(again.logits, want.logits);
  }
}

TEST_F(CudaEngineFailures, AReplacedSegmentIsFollowed) {
  for (const int64_t slots : {-1, 8}) {
    SCOPED_TRACE(slots);
    auto engine = Make({.expert_slots = slots});
    ASSERT_NE(engine, nullptr);
    ASSERT_OK_AND_ASSIGN(const Answer before, Run(*engine, 20));
    ASSERT_OK(engine->expert_tier()->SetPolicy("recency"));
    ASSERT_OK(Run(*engine, 1));
    experts_->Replace();
    ASSERT_OK_AND_ASSIGN(const Answer after, Run(*engine, 20));
    EXPECT_EQ(engine->expert_tier()->Statistics().cache.policy, "recency");
    engine.reset();  // two cannot register the same memory
    const auto fresh = Make({.expert_slots = slots});
    ASSERT_NE(fresh, nullptr);
    ASSERT_OK_AND_ASSIGN(const Answer want, Continue(*fresh, Ids(20, 1), 3, 4096, after.tokens));
    EXPECT_GT(RelativeRms(before.logits, want.logits), 2 * kFastRms);
    EXPECT_LE(RelativeRms(after.logits, want.logits), slots < 0 ? 0 : kFastRms);
  }
}

TEST_F(CudaEngineFailures, SlotsAreFilledAtTheStartByWhatWasCountedBefore) {
  const auto engine = Make({.expert_slots = 4});
  ASSERT_NE(engine, nullptr);
  // One layer's experts, of which the first token needs some: those are hits.
  std::vector<ExpertUses> profile;
  const auto ids = Ids(1, 1);
  const auto without = Make({.expert_slots = 0});
  ASSERT_NE(without, nullptr);
  ASSERT_OK(Feed(*without, *without->NewSequence(), ids));
  for (const auto& [key, count] : experts_->TakeUses()) {
    if (key.first == 2) profile.push_back({key.first, key.second, 9});
  }
  ASSERT_EQ(profile.size(), 4u);
  engine->expert_tier()->SetProfile(profile);
  ASSERT_OK(Feed(*engine, *engine->NewSequence(), ids));
  const CacheStatistics cache = engine->expert_tier()->Statistics().cache;
  EXPECT_EQ(cache.layers[2].hits, 4u);
  EXPECT_EQ(cache.layers[0].hits + cache.layers[1].hits + cache.layers[3].hits, 0u);
}

// A segment that is taken over keeps a step for seconds: a watchdog must see it go on.
TEST_F(CudaEngineFailures, TakingASegmentOverIsProgress) {
  const auto engine = Make();
  ASSERT_NE(engine, nullptr);
  std::vector<uint64_t> seen = {engine->progress()};
  experts_->on_packed = [&] { seen.push_back(engine->progress()); };
  ASSERT_OK(Run(*engine, 1));
  ASSERT_GE(seen.size(), 65u);  // one a slot
  for (size_t i = 1; i < seen.size(); ++i) EXPECT_GT(seen[i], seen[i - 1]) << i;
}

TEST_F(CudaEngineFailures, UsesAreCountedOnceWhereverAnExpertWasComputed) {
  const auto engine = Make({.expert_slots = 8});
  ASSERT_NE(engine, nullptr);
  for (const int n : {300, 30, 1}) {  // streamed, shared with the CPU, decoded
    const auto state = engine->NewSequence();
    experts_->TakeUses();
    ASSERT_OK(Feed(*engine, *state, Ids(n, 1)));
    const auto uses = experts_->TakeUses();
    EXPECT_GE(uses.size(), 4u * 4u);
    for (const auto& [key, count] : uses) {
      EXPECT_EQ(count, 1) << n << " rows, layer " << key.first << " expert " << key.second;
    }
  }
}

TEST_F(CudaEngineFailures, TooLittleMemoryIsRefusedWithTheTable) {
  const auto create = [&](uint64_t vram_bytes, int64_t slots) {
    return Engine::Create(*checkpoint_, experts_.get(),
                          {.backend = BackendKind::kCuda,
                           .n_threads = 2,
                           .exact = false,
                           .vram_bytes = vram_bytes,
                           .expert_slots = slots})
        .status();
  };
  EXPECT_THAT(create(uint64_t{64} << 20, -1),
              IsStatus(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("--vram allows 64 MiB"), HasSubstr("dense weights"),
                             HasSubstr("KV pages"))));
  EXPECT_OK(create(uint64_t{2} << 30, 10));
}

}  // namespace
}  // namespace hearth::worker
