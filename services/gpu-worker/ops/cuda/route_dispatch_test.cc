// The router's choice and the dispatch of a decode step in one launch, against the router alone.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "services/gpu-worker/ops/cuda/exchange_testing.h"
#include "services/gpu-worker/ops/cuda/router_cuda.h"

namespace hearth::worker {
namespace {

using Floats = std::vector<float>;

// A decode step's dispatch, with everything that it may be given.
struct RoutedCase {
  int n_rows, n_experts, top_k;
  bool is_imposed, has_shared;
};
class RouteAndDispatchTest : public ExchangeTest,
                             public ::testing::WithParamInterface<RoutedCase> {};

TEST_P(RouteAndDispatchTest, RoutesAsTheRouterAndDispatches) {
  const RoutedCase& c = GetParam();
  constexpr int kWidth = 64;
  const int n = c.n_rows * c.top_k, a_row = c.top_k + (c.has_shared ? 1 : 0);
  const auto at = [](int i) { return static_cast<size_t>(i); };
  const Floats logits = RandomFloats(c.n_rows * c.n_experts, 5, 2);
  const Floats gate = RandomFloats(c.n_rows, 6), h = RandomFloats(c.n_rows * kWidth, 7);
  std::vector<int64_t> positions(at(c.n_rows), 3);
  const int idle = c.n_rows > 2 ? 1 : -1;
  if (idle >= 0) positions[at(idle)] = -1;
  std::vector<int32_t> imposed;
  for (int p = 0; p < n; ++p) imposed.push_back((p * 7 + 1) % c.n_experts);
  const auto slots = SlotsOf(c.n_experts, 2);
  const auto d_logits = ToDevice(logits), d_gate = ToDevice(gate), d_h = ToDevice(h);
  const auto d_positions = ToDevice(positions);
  const auto d_imposed = ToDevice(imposed);
  const auto d_slots = ToDevice(slots);
  const auto* const shared = reinterpret_cast<const uint8_t*>(uintptr_t{64});

  auto want_ids = Poisoned<int32_t>(n), ids = Poisoned<int32_t>(n);
  auto want_weights = Poisoned<float>(n), weights = Poisoned<float>(n);
  HEARTH_EXPECT_CUDA(RouteCuda({c.n_rows, c.n_experts, c.top_k}, true, d_logits.data(),
                               want_ids.data(), want_weights.data(), stream_.get()));
  auto places = Poisoned<ExpertPlace>(c.n_rows * a_row);
  auto out = ToDevice(h);
  Pinned<int32_t> choices(n);
  const DispatchShape shape{.layer = 2, .n_rows = c.n_rows, .top_k = c.top_k, .width = kWidth};
  Answers answers(*memory_, kWidth);
  HEARTH_EXPECT_CUDA(RouteAndDispatchCuda(
      shape,
      {.logits = d_logits.data(),
       .normalise = true,
       .imposed = c.is_imposed ? d_imposed.data() : nullptr,
       .shared_slot = c.has_shared ? shared : nullptr,
       .shared_gate = d_gate.data(),
       .ids = ids.data(),
       .weights = weights.data()},
      {nullptr, nullptr, d_positions.data(), d_slots.data(), c.n_experts, d_h.data()},
      memory_->exchange, places.data(), choices.data(), stream_.get()));
  HEARTH_EXPECT_CUDA(AwaitExpertsCuda(shape, memory_->exchange, out.data(), stream_.get()));
  Synchronize();
  const std::vector<Asked>& asked = answers.Asks();

  const auto chosen = c.is_imposed ? imposed : ToHost(want_ids);
  EXPECT_EQ(ToHost(ids), chosen);
  EXPECT_EQ(ToHost(weights), ToHost(want_weights));
  const auto got_places = ValuesOf(places);
  const Floats w = ToHost(weights);
  std::vector<std::tuple<int, int, float>> misses;
  for (int row = 0; row < c.n_rows; ++row) {
    for (int k = 0; k < c.top_k; ++k) {
      const int p = row * c.top_k + k;
      const uint8_t* slot = row == idle ? nullptr : slots[at(chosen[at(p)])];
      EXPECT_EQ(got_places[at(row * a_row + k)], (PlaceValue{slot, w[at(p)]}));
      EXPECT_EQ(choices.data()[p], row == idle ? -1 : chosen[at(p)]);
      if (row != idle && slot == nullptr) misses.emplace_back(p, chosen[at(p)], w[at(p)]);
    }
    if (!c.has_shared) continue;
    const PlaceValue place = got_places[at(row * a_row + c.top_k)];
    EXPECT_EQ(place.slot, row == idle ? nullptr : shared);
    EXPECT_NEAR(place.weight, 1 / (1 + std::exp(-gate[at(row)])), 1e-6);
  }
  ASSERT_EQ(asked.size(), misses.empty() ? 0u : 1u);
  if (misses.empty()) return;
  EXPECT_EQ(asked[0].misses, misses);
  EXPECT_EQ(asked[0].h, h);
}

// Of a step's missed experts the last few go to the GPU, all places of each.
TEST_F(ExchangeTest, MissesAreDividedByTheTable) {
  constexpr int kExperts = 64, kTopK = 10, kWidth = 64;
  const auto at = [](int i) { return static_cast<size_t>(i); };
  for (const int n_rows : {1, 3, 8}) {
    SCOPED_TRACE(n_rows);
    const int n = n_rows * kTopK;
    const Floats logits = RandomFloats(n_rows * kExperts, n_rows, 2);
    const Floats h = RandomFloats(n_rows * kWidth, 7);
    const auto slots = SlotsOf(kExperts, 2);
    std::vector<const uint8_t*> in_ram(kExperts);
    for (int e = 0; e < kExperts; ++e) {
      // That of one expert in eight cannot be read.
      in_ram[at(e)] =
          e % 8 == 4 ? nullptr : reinterpret_cast<const uint8_t*>(uintptr_t{1} << 20) + e;
    }
    std::vector<uint16_t> table;
    for (int i = 0; i <= n; ++i) table.push_back(static_cast<uint16_t>((i + 1) / 2));
    const auto d_logits = ToDevice(logits), d_h = ToDevice(h);
    const auto d_positions = ToDevice(std::vector<int64_t>(at(n_rows), 3));
    const auto d_slots = ToDevice(slots), d_in_ram = ToDevice(in_ram);
    const auto d_table = ToDevice(table);
    auto ids = Poisoned<int32_t>(n);
    auto weights = Poisoned<float>(n);
    auto places = Poisoned<ExpertPlace>(n);
    auto out = ToDevice(h);
    Pinned<int32_t> choices(n);
    Memory memory;
    const DispatchShape shape{.layer = 1, .n_rows = n_rows, .top_k = kTopK, .width = kWidth};
    Answers answers(memory, kWidth);
    HEARTH_EXPECT_CUDA(RouteAndDispatchCuda(
        shape,
        {.host_slots = d_in_ram.data(),
         .in_place = d_table.data(),
         .logits = d_logits.data(),
         .ids = ids.data(),
         .weights = weights.data()},
        {nullptr, nullptr, d_positions.data(), d_slots.data(), kExperts, d_h.data()},
        memory.exchange, places.data(), choices.data(), stream_.get()));
    HEARTH_EXPECT_CUDA(AwaitExpertsCuda(shape, memory.exchange, out.data(), stream_.get()));
    HEARTH_EXPECT_CUDA(FinishStepCuda(memory.exchange, stream_.get()));
    Synchronize();

    const auto chosen = ToHost(ids);
    const Floats w = ToHost(weights);
    std::vector<int> missed;  // different ones, in the order of their first places
    for (const int32_t e : chosen) {
      if (slots[at(e)] == nullptr && !std::ranges::count(missed, e)) missed.push_back(e);
    }
    const auto n_missed = static_cast<int>(missed.size());
    ASSERT_GT(n_missed, 2);
    const auto first_in_place = missed.end() - table[at(n_missed)];
    const auto got_places = ValuesOf(places);
    std::vector<std::tuple<int, int, float>> asked;
    for (int p = 0; p < n; ++p) {
      const int32_t e = chosen[at(p)];
      const uint8_t* want = slots[at(e)];
      if (want == nullptr && std::find(first_in_place, missed.end(), e) != missed.end()) {
        want = in_ram[at(e)];
        EXPECT_EQ(choices.data()[p], want == nullptr ? e : e | kReadInPlace);
      } else {
        EXPECT_EQ(choices.data()[p], e);
      }
      EXPECT_EQ(got_places[at(p)], (PlaceValue{want, w[at(p)]}));
      if (want == nullptr) asked.emplace_back(p, e, w[at(p)]);
    }
    const std::vector<Asked>& got = answers.Asks();
    ASSERT_EQ(got.size(), 1u);
    EXPECT_EQ(got[0].misses, asked);
    const StepTimes& times = memory.request.data()->times;
    EXPECT_EQ(times.layers.n, 1);
    EXPECT_EQ(times.layers.x, n_missed);
    EXPECT_GT(times.awaited, 0);
    EXPECT_GE(times.layers.y, times.awaited);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, RouteAndDispatchTest,
    ::testing::Values(RoutedCase{1, 8, 1, false, false}, RoutedCase{1, 512, 10, false, true},
                      RoutedCase{8, 512, 10, false, true}, RoutedCase{8, 512, 10, true, true},
                      RoutedCase{5, 128, 8, false, false}, RoutedCase{3, 129, 31, false, true},
                      RoutedCase{2, 1024, 32, true, false}));

}  // namespace
}  // namespace hearth::worker
