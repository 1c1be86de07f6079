// The exchange with the CPU: a host thread answers as the engine does.
#include "services/gpu-worker/ops/cuda/exchange.h"

#include <chrono>
#include <tuple>
#include <vector>

#include "services/gpu-worker/ops/cuda/exchange_testing.h"

namespace hearth::worker {
namespace {

using Floats = std::vector<float>;
using Clock = std::chrono::steady_clock;

TEST_F(ExchangeTest, HitsGetTheirPlacesAndMissesTheCpusSums) {
  constexpr int kRows = 11, kTopK = 4, kExperts = 16, kWidth = 64;
  const DispatchShape shape{.layer = 7, .n_rows = kRows, .top_k = kTopK, .width = kWidth};
  std::vector<int32_t> ids;
  for (int p = 0; p < kRows * kTopK; ++p) ids.push_back(p * 5 % kExperts);
  const Floats weights = RandomFloats(kRows * kTopK, 1), h = RandomFloats(kRows * kWidth, 2),
               before = RandomFloats(kRows * kWidth, 3);
  std::vector<int64_t> positions(kRows, 9);
  positions[3] = -1;
  const auto slots = SlotsOf(kExperts, 3);
  const auto d_ids = ToDevice(ids);
  const auto d_weights = ToDevice(weights), d_h = ToDevice(h);
  const auto d_positions = ToDevice(positions);
  const auto d_slots = ToDevice(slots);
  auto out = ToDevice(before);
  auto places = Poisoned<ExpertPlace>(kRows * kTopK);
  auto is_here = Poisoned<uint8_t>(kExperts);
  Pinned<int32_t> choices(kRows * kTopK);
  const DispatchInputs in{d_ids.data(),   d_weights.data(), d_positions.data(),
                          d_slots.data(), kExperts,         d_h.data()};
  Answers answers(*memory_, kWidth);
  HEARTH_EXPECT_CUDA(DispatchExpertsCuda(shape, in, memory_->exchange, places.data(),
                                         is_here.data(), choices.data(), stream_.get()));
  HEARTH_EXPECT_CUDA(AwaitExpertsCuda(shape, memory_->exchange, out.data(), stream_.get()));
  HEARTH_EXPECT_CUDA(FinishStepCuda(memory_->exchange, stream_.get()));
  Synchronize();
  const std::vector<Asked>& asked = answers.Asks();

  std::vector<PlaceValue> want_places;
  std::vector<int32_t> want_choices;
  std::vector<std::tuple<int, int, float>> want_misses;
  for (int p = 0; p < kRows * kTopK; ++p) {
    const auto i = static_cast<size_t>(p);
    const bool is_idle = p / kTopK == 3;
    const uint8_t* slot = is_idle ? nullptr : slots[static_cast<size_t>(ids[i])];
    want_places.push_back({slot, weights[i]});
    want_choices.push_back(is_idle ? -1 : ids[i]);
    if (!is_idle && slot == nullptr) want_misses.emplace_back(p, ids[i], weights[i]);
  }
  EXPECT_EQ(ValuesOf(places), want_places);
  EXPECT_EQ(choices.Values(kRows * kTopK), want_choices);
  for (int e = 0; e < kExperts; ++e) {
    EXPECT_EQ(ToHost(is_here)[static_cast<size_t>(e)], slots[static_cast<size_t>(e)] != nullptr);
  }
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].layer, 7);
  EXPECT_EQ(asked[0].n_rows, kRows);
  EXPECT_GT(want_misses.size(), 5u);
  EXPECT_EQ(asked[0].misses, want_misses);
  EXPECT_EQ(asked[0].h, h);
  const Floats got = ToHost(out);
  for (int i = 0; i < kRows * kWidth; ++i) {
    const auto at = static_cast<size_t>(i);
    EXPECT_EQ(got[at], before[at] + Answers::Sum(1, i / kWidth, i % kWidth)) << i;
  }
  EXPECT_EQ(memory_->request.data()->steps_done, 1u);
  EXPECT_EQ(memory_->request.data()->heartbeat, 1u);
  EXPECT_EQ(memory_->request.data()->failed, 0u);
}

TEST_F(ExchangeTest, WithoutMissesNobodyIsAskedAndNothingIsAdded) {
  constexpr int kRows = 2, kTopK = 2, kExperts = 4, kWidth = 8;
  const DispatchShape shape{.layer = 0, .n_rows = kRows, .top_k = kTopK, .width = kWidth};
  const std::vector<int32_t> ids = {1, 2, 3, 1};
  const Floats weights(4, 0.5f), h(16, 1.f), before = RandomFloats(16, 3);
  const std::vector<int64_t> positions = {0, 5};
  const auto slots = SlotsOf(kExperts, 4);
  const auto d_ids = ToDevice(ids);
  const auto d_weights = ToDevice(weights), d_h = ToDevice(h);
  const auto d_positions = ToDevice(positions);
  const auto d_slots = ToDevice(slots);
  auto out = ToDevice(before);
  auto places = Poisoned<ExpertPlace>(4);
  HEARTH_EXPECT_CUDA(DispatchExpertsCuda(
      shape,
      {d_ids.data(), d_weights.data(), d_positions.data(), d_slots.data(), kExperts, d_h.data()},
      memory_->exchange, places.data(), nullptr, nullptr, stream_.get()));
  HEARTH_EXPECT_CUDA(AwaitExpertsCuda(shape, memory_->exchange, out.data(), stream_.get()));
  HEARTH_EXPECT_CUDA(BeatCuda(memory_->exchange, stream_.get()));
  Synchronize();
  EXPECT_EQ(ToHost(out), before);
  EXPECT_EQ(memory_->request.data()->ticket, 0u);
  EXPECT_EQ(memory_->request.data()->heartbeat, 2u);
}

// Layers follow each other without the host's part, also when replayed: every ticket is answered
// once, and each layer gets the sums of its own.
TEST_F(ExchangeTest, ManyLayersOfACapturedStepGetTheirOwnAnswers) {
  constexpr int kRows = 3, kTopK = 2, kExperts = 8, kWidth = 32, kLayers = 40, kSteps = 5;
  const std::vector<int64_t> positions(kRows, 1);
  const Floats weights(kRows * kTopK, 1.f), h = RandomFloats(kRows * kWidth, 1);
  const auto slots = SlotsOf(kExperts, 2);  // the odd ones are here
  const auto d_positions = ToDevice(positions);
  const auto d_weights = ToDevice(weights), d_h = ToDevice(h);
  const auto d_slots = ToDevice(slots);
  // Every third layer chooses hits only.
  const std::vector<int32_t> hits(kRows * kTopK, 3), misses(kRows * kTopK, 4);
  const auto d_hits = ToDevice(hits), d_misses = ToDevice(misses);
  auto out = ToDevice(Floats(kLayers * kRows * kWidth, 0.f));
  auto places = Poisoned<ExpertPlace>(kRows * kTopK);
  HEARTH_EXPECT_CUDA(cudaDeviceSynchronize());
  HEARTH_EXPECT_CUDA(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
  for (int layer = 0; layer < kLayers; ++layer) {
    const DispatchShape shape{layer, kRows, kTopK, kWidth};
    HEARTH_EXPECT_CUDA(
        DispatchExpertsCuda(shape,
                            {layer % 3 == 0 ? d_hits.data() : d_misses.data(), d_weights.data(),
                             d_positions.data(), d_slots.data(), kExperts, d_h.data()},
                            memory_->exchange, places.data(), nullptr, nullptr, stream_.get()));
    HEARTH_EXPECT_CUDA(AwaitExpertsCuda(shape, memory_->exchange,
                                        out.data() + layer * kRows * kWidth, stream_.get()));
  }
  HEARTH_EXPECT_CUDA(FinishStepCuda(memory_->exchange, stream_.get()));
  Graph graph;
  HEARTH_EXPECT_CUDA(cudaStreamEndCapture(stream_.get(), graph.put()));
  GraphExec exec;
  HEARTH_EXPECT_CUDA(cudaGraphInstantiate(exec.put(), graph.get(), 0));
  Answers answers(*memory_, kWidth);
  for (int step = 0; step < kSteps; ++step) {
    HEARTH_EXPECT_CUDA(cudaGraphLaunch(exec.get(), stream_.get()));
  }
  Synchronize();
  const std::vector<Asked>& asked = answers.Asks();
  const Floats got = ToHost(out);
  uint32_t a_step = 0;
  for (int layer = 0; layer < kLayers; ++layer) a_step += layer % 3 == 0 ? 0 : 1;
  ASSERT_EQ(asked.size(), a_step * kSteps);
  uint32_t ticket = 0;
  for (int layer = 0; layer < kLayers; ++layer) {
    ticket += layer % 3 == 0 ? 0 : 1;
    float want = 0;
    for (uint32_t step = 0; layer % 3 != 0 && step < kSteps; ++step) {
      want += Answers::Sum(ticket + step * a_step, 2, 5);
    }
    EXPECT_EQ(got[static_cast<size_t>((layer * kRows + 2) * kWidth + 5)], want) << layer;
  }
  EXPECT_EQ(memory_->request.data()->steps_done, uint32_t{kSteps});
  EXPECT_EQ(memory_->request.data()->heartbeat, uint32_t{kSteps * kLayers});
}

TEST_F(ExchangeTest, AWaitThatNobodyEndsFailsAndLaterOnesDoNotWait) {
  constexpr int kRows = 2, kTopK = 1, kExperts = 2, kWidth = 8, kLayers = 20;
  const DispatchShape shape{.layer = 0, .n_rows = kRows, .top_k = kTopK, .width = kWidth};
  const std::vector<int32_t> ids = {0, 0};
  const std::vector<int64_t> positions = {0, 0};
  const auto slots = SlotsOf(kExperts, 2);
  const auto d_ids = ToDevice(ids);
  const auto d_weights = ToDevice(Floats(2, 1.f)), d_h = ToDevice(Floats(16, 1.f));
  const auto d_positions = ToDevice(positions);
  const auto d_slots = ToDevice(slots);
  auto out = ToDevice(Floats(16, 0.f));
  auto places = Poisoned<ExpertPlace>(2);
  memory_->exchange.await_nanoseconds = 100'000'000;
  const auto start = Clock::now();
  for (int layer = 0; layer < kLayers; ++layer) {
    HEARTH_EXPECT_CUDA(DispatchExpertsCuda(
        shape,
        {d_ids.data(), d_weights.data(), d_positions.data(), d_slots.data(), kExperts, d_h.data()},
        memory_->exchange, places.data(), nullptr, nullptr, stream_.get()));
    HEARTH_EXPECT_CUDA(AwaitExpertsCuda(shape, memory_->exchange, out.data(), stream_.get()));
  }
  HEARTH_EXPECT_CUDA(FinishStepCuda(memory_->exchange, stream_.get()));
  Synchronize();
  const auto took = Clock::now() - start;
  EXPECT_GE(took, std::chrono::milliseconds(100));
  EXPECT_LT(took, std::chrono::milliseconds(100 * kLayers / 2));
  EXPECT_EQ(memory_->request.data()->failed, 1u);
  EXPECT_EQ(memory_->request.data()->steps_done, 1u);
  EXPECT_EQ(ToHost(memory_->counters)[kTimedOutCounter], 1u);
}

TEST_F(ExchangeTest, TheTableTakesItsUpdatesAndKeepsTheRest) {
  constexpr int kEntries = 1000;
  auto table = ToDevice(SlotsOf(kEntries, 7));
  auto want = SlotsOf(kEntries, 7);
  Pinned<SlotUpdate> updates(kEntries);
  for (const int n : {0, 1, 63, 64, 65, 300}) {
    for (int i = 0; i < n; ++i) {
      const int64_t index = (int64_t{i} * 3 + n) % kEntries;
      const auto* const slot =
          i % 5 == 0 ? nullptr : reinterpret_cast<const uint8_t*>(uintptr_t{1} << 20) + 64 * i;
      updates.data()[i] = {slot, index};
      want[static_cast<size_t>(index)] = slot;
    }
    HEARTH_EXPECT_CUDA(UpdateSlotsCuda(updates.data(), n, table.data(), stream_.get()));
    Synchronize();
    EXPECT_EQ(ToHost(table), want) << n;
  }
}

TEST_F(ExchangeTest, WhatDoesNotFitIsRefused) {
  const auto dispatch = [&](const DispatchShape& shape) {
    return DispatchExpertsCuda(shape, {}, memory_->exchange, nullptr, nullptr, nullptr,
                               stream_.get());
  };
  EXPECT_EQ(dispatch({0, 1, 1, 6}), cudaErrorInvalidValue);
  EXPECT_EQ(dispatch({0, 1, 0, 8}), cudaErrorInvalidValue);
  EXPECT_EQ(dispatch({0, -1, 1, 8}), cudaErrorInvalidValue);
  EXPECT_EQ(dispatch({0, 0, 1, 8}), cudaSuccess);
  const uint8_t shared = 0;
  const auto route = [&](int n_rows, int n_experts, int top_k, bool has_shared) {
    return RouteAndDispatchCuda(
        {0, n_rows, top_k, 8}, {.shared_slot = has_shared ? &shared : nullptr},
        {.n_experts = n_experts}, memory_->exchange, nullptr, nullptr, stream_.get());
  };
  EXPECT_EQ(route(9, 64, 4, false), cudaErrorInvalidValue);
  EXPECT_EQ(route(1, 1025, 4, false), cudaErrorInvalidValue);
  EXPECT_EQ(route(1, 64, 33, false), cudaErrorInvalidValue);
  EXPECT_EQ(route(1, 64, 32, true), cudaErrorInvalidValue);
  EXPECT_EQ(route(1, 4, 5, false), cudaErrorInvalidValue);
  EXPECT_EQ(route(0, 64, 4, true), cudaSuccess);
  EXPECT_EQ(AwaitExpertsCuda({0, 1, 1, 7}, memory_->exchange, nullptr, stream_.get()),
            cudaErrorInvalidValue);
  EXPECT_EQ(UpdateSlotsCuda(nullptr, -1, nullptr, stream_.get()), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
