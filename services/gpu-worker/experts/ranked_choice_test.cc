#include "services/gpu-worker/experts/ranked_choice.h"

#include <algorithm>
#include <random>
#include <set>
#include <utility>

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/experts/expert_cache.h"

namespace hearth::worker {
namespace {

using Choice = CachePolicy::Choice;

// The same by looking at everything each time.
std::vector<Choice> NaiveChoice(const CacheState& state, std::span<const int32_t> candidates,
                                std::span<const float> ranks, float margin, int at_most) {
  std::vector<std::pair<float, int32_t>> best, residents;  // by rising first
  for (const int32_t key : candidates) {
    if (state.slot_of[static_cast<size_t>(key)] < 0) {
      best.push_back({-ranks[static_cast<size_t>(key)], key});
    }
  }
  for (int32_t slot = 0; slot < state.shape.n_slots; ++slot) {
    const auto index = static_cast<size_t>(slot);
    if (state.slot_state[index] == SlotState::kResident) {
      residents.push_back({ranks[static_cast<size_t>(state.key_of[index])], slot});
    }
  }
  std::ranges::sort(best);
  std::ranges::sort(residents);
  std::vector<Choice> choices;
  size_t n_free = state.free_slots.size(), victim = 0;
  for (const auto& [minus_rank, key] : best) {
    if (static_cast<int>(choices.size()) >= at_most) break;
    if (n_free > 0) {
      choices.push_back({key, state.free_slots[--n_free]});
    } else {
      if (victim == residents.size() || !(-minus_rank > residents[victim].first + margin)) break;
      choices.push_back({key, residents[victim++].second});
    }
  }
  return choices;
}

// Chooses, and compares with the naive choice.
class ComparingPolicy final : public CachePolicy {
 public:
  explicit ComparingPolicy(const CacheShape& shape) : candidates_(shape.n_keys()) {}
  std::string_view name() const override { return "comparing"; }
  void OnStep(CacheState* /*state*/, std::span<const ExpertUse> /*uses*/,
              std::span<const int32_t> missed) override {
    for (const int32_t key : missed) candidates_.Add(key);
  }
  void Choose(CacheState* state, int at_most, std::vector<Choice>* choices) override {
    const auto margin = static_cast<float>(0.5 * state->heat.unit());
    const auto want = NaiveChoice(*state, candidates_.keys(), state->heat.raws(), margin, at_most);
    choice_.Choose(state, candidates_.keys(), {state->heat.raws(), state->heat.epoch()}, margin,
                   at_most, choices);
    ASSERT_EQ(choices->size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ((*choices)[i].key, want[i].key) << i;
      ASSERT_EQ((*choices)[i].slot, want[i].slot) << i;
    }
    candidates_.Clear();
  }

 private:
  Candidates candidates_;
  RankedChoice choice_;
};

// Slots beyond what a look at all of them keeps, copies that last for steps, fail or become stale,
// and a half-life so short that heats are rescaled.
class RankedChoiceTest : public ::testing::TestWithParam<int> {};

TEST_P(RankedChoiceTest, IsThatOfLookingAtEverySlot) {
  const CacheShape shape{.n_layers = 4, .n_experts = 512, .n_slots = GetParam()};
  ExpertCache cache(shape, std::make_unique<ComparingPolicy>(shape), 8);
  std::mt19937 random(static_cast<unsigned>(GetParam()));
  std::vector<Admission> copies;
  uint64_t n_admissions = 0, n_evictions = 0;
  int center = 0;
  for (int step = 0; step < 1500; ++step) {
    if (random() % 16 == 0) center = static_cast<int>(random() % 2048);
    std::set<int> keys;
    const int n_uses = random() % 8 == 0 ? 1200 : 150;
    for (int i = 0; i < n_uses; ++i) {
      const int spread = random() % 4 == 0 ? 2048 : shape.n_slots;
      keys.insert((center + static_cast<int>(random() % static_cast<unsigned>(spread))) % 2048);
    }
    std::vector<ExpertUse> uses;
    uses.reserve(keys.size());
    for (const int key : keys) uses.push_back({key / 512, key % 512, 1});
    cache.RecordStep(uses);
    const int at_most = static_cast<int>(n_uses > 150 ? 1000 : random() % 12);
    for (const Admission& admission : cache.PlanAdmissions(at_most)) {
      copies.push_back(admission);
      ++n_admissions;
      n_evictions += admission.evicted_layer >= 0 ? 1 : 0;
    }
    if (HasFatalFailure()) FAIL() << "in step " << step;
    std::erase_if(copies, [&](const Admission& admission) {
      const unsigned luck = random() % 8;
      if (luck < 4) return false;  // still under way
      luck == 4 ? cache.Abandon(admission) : static_cast<void>(cache.Publish(admission));
      return true;
    });
    if (random() % 400 == 0) cache.Clear();
  }
  EXPECT_GT(n_admissions, 500u);
  EXPECT_GT(n_evictions, 500u);
}

INSTANTIATE_TEST_SUITE_P(Slots, RankedChoiceTest, ::testing::Values(16, 257, 700, 1500));

}  // namespace
}  // namespace hearth::worker
