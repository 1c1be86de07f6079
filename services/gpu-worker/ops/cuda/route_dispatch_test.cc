// The router's choice and the dispatch of a decode step in one launch, against the router alone.
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

INSTANTIATE_TEST_SUITE_P(
    Shapes, RouteAndDispatchTest,
    ::testing::Values(RoutedCase{1, 8, 1, false, false}, RoutedCase{1, 512, 10, false, true},
                      RoutedCase{8, 512, 10, false, true}, RoutedCase{8, 512, 10, true, true},
                      RoutedCase{5, 128, 8, false, false}, RoutedCase{3, 129, 31, false, true},
                      RoutedCase{2, 1024, 32, true, false}));

}  // namespace
}  // namespace hearth::worker
