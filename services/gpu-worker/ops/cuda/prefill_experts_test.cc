// The prefill's experts: groups against a stable count, products against sums in double.
#include "services/gpu-worker/ops/cuda/prefill_experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/prefill_rows.h"
#include "services/gpu-worker/ops/cuda/prefill_testing.h"

namespace hearth::worker {
namespace {

using PrefillExpertsTest = CudaTest;
using Floats = std::vector<float>;
using Ids = std::vector<int32_t>;

struct DeviceGroups {
  DeviceGroups(int n_experts, const Ids& ids)
      : offsets(Poisoned<int32_t>(n_experts + 2)),
        order(Poisoned<int32_t>(static_cast<int64_t>(ids.size()) + 1)) {
    const auto device_ids = ToDevice(ids);
    HEARTH_EXPECT_CUDA(GroupPlacesCuda(static_cast<int>(ids.size()), n_experts, device_ids.data(),
                                       groups(), nullptr));
    HEARTH_EXPECT_CUDA(cudaDeviceSynchronize());
  }
  PlaceGroups groups() { return {offsets.data(), order.data()}; }
  DeviceBuffer<int32_t> offsets, order;
};

TEST_F(PrefillExpertsTest, GroupsHoldEachExpertsPlacesInOrder) {
  std::mt19937 random(1);
  for (const int n_experts : {1, 7, 64, 512, 1024, 16384}) {
    for (const int n_places : {0, 1, 31, 32, 33, 1000, 5120, 40960}) {
      for (const bool is_flat : {true, false}) {
        Ids ids(static_cast<size_t>(n_places));
        for (int32_t& id : ids) {
          id = static_cast<int32_t>(random() % static_cast<unsigned>(n_experts));
          if (!is_flat) id = std::min(id, n_experts / 8);  // most to one, none to many
        }
        DeviceGroups groups(n_experts, ids);
        Ids order(ids.size()), offsets(static_cast<size_t>(n_experts) + 1);
        std::iota(order.begin(), order.end(), 0);
        std::ranges::stable_sort(order, {},
                                 [&](int32_t place) { return ids[static_cast<size_t>(place)]; });
        for (const int32_t id : ids) ++offsets[static_cast<size_t>(id) + 1];
        std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
        order.push_back(-1), offsets.push_back(-1);  // what nothing wrote
        EXPECT_EQ(ToHost(groups.offsets), offsets) << n_places << " among " << n_experts;
        EXPECT_EQ(ToHost(groups.order), order) << n_places << " among " << n_experts;
      }
    }
  }
}

struct Expert {
  Expert(int width, int inner, uint32_t seed)
      : gate(WeightKind::kTiled4, inner, width, seed),
        up(WeightKind::kTiled4, inner, width, seed + 1),
        down(WeightKind::kTiled4, width, inner, seed + 2) {
    gate.ref.factor = 0.125f, up.ref.factor = std::ldexp(1.f, -static_cast<int>(seed % 5));
  }
  HostMatrix gate, up, down;
};

// Slots of all experts side by side: factors, then data and scales at multiples of 64 bytes.
struct Slots {
  Slots(int n_experts, int width, int inner) {
    for (int e = 0; e < n_experts; ++e) {
      experts.push_back(std::make_unique<Expert>(width, inner, static_cast<uint32_t>(10 * e + 1)));
    }
    bytes_each = 64;
    const auto take = [&](const LinearRef& ref, int64_t factor) {
      SlotMatrix matrix{.data = bytes_each, .scales = 0, .factor = factor};
      bytes_each += static_cast<int64_t>(BytesOf(ref).data + 63) / 64 * 64;
      matrix.scales = bytes_each;
      bytes_each += static_cast<int64_t>(BytesOf(ref).absmax + 63) / 64 * 64;
      return matrix;
    };
    shape.gate = take(experts[0]->gate.ref, 0);
    shape.up = take(experts[0]->up.ref, 4);
    shape.down = take(experts[0]->down.ref, 8);
    shape.width = width, shape.inner = inner;
    shape.levels = LevelsOf(experts[0]->gate.ref);
    std::vector<uint8_t> bytes(static_cast<size_t>(n_experts * bytes_each));
    for (int e = 0; e < n_experts; ++e) {
      const auto put = [&](const HostMatrix& host, const SlotMatrix& matrix) {
        uint8_t* slot = bytes.data() + e * bytes_each;
        std::memcpy(slot + matrix.factor, &host.ref.factor, 4);
        std::memcpy(slot + matrix.data, host.data.data(), host.data.size());
        std::memcpy(slot + matrix.scales, host.scales.data(), host.scales.size() * 2);
      };
      put(experts[static_cast<size_t>(e)]->gate, shape.gate);
      put(experts[static_cast<size_t>(e)]->up, shape.up);
      put(experts[static_cast<size_t>(e)]->down, shape.down);
    }
    memory = ToDevice(bytes);
  }
  PrefillExpert Entry(int expert) {
    return {.slot = memory.data() + expert * bytes_each, .expert = expert};
  }
  int n() const { return static_cast<int>(experts.size()); }

  std::vector<std::unique_ptr<Expert>> experts;
  ExpertsShape shape;
  int64_t bytes_each = 0;
  DeviceBuffer<uint8_t> memory;
};

// Rows and what they chose.
struct Batch {
  int n_rows = 0, top_k = 0;
  Floats h;
  Ids ids;
  Floats weights;
};

Batch Cut(const Batch& batch, int first, int n_rows) {
  const auto width = static_cast<int64_t>(batch.h.size()) / batch.n_rows;
  const auto cut = [&](const auto& all, int64_t each) {
    return std::decay_t<decltype(all)>(all.begin() + first * each,
                                       all.begin() + (first + n_rows) * each);
  };
  return {n_rows, batch.top_k, cut(batch.h, width), cut(batch.ids, batch.top_k),
          cut(batch.weights, batch.top_k)};
}

// Products [n K, width] as float after `lists` were computed one after the other.
Floats Compute(Slots& slots, const Batch& batch,
               const std::vector<std::vector<PrefillExpert>>& lists) {
  ExpertsShape shape = slots.shape;
  shape.n_rows = batch.n_rows, shape.top_k = batch.top_k;
  const int64_t n_places = int64_t{batch.n_rows} * batch.top_k;
  DeviceGroups groups(slots.n(), batch.ids);
  const auto h = ToDevice(batch.h), weights = ToDevice(batch.weights);
  auto half = Poisoned<uint16_t>(h.size());
  auto act = Poisoned<uint16_t>(n_places * shape.inner);
  auto products = Poisoned<uint16_t>(n_places * shape.width + 1);
  HEARTH_EXPECT_CUDA(ToHalfRowsCuda(batch.n_rows, shape.width, h.data(), half.data(), nullptr));
  for (const auto& list : lists) {
    const auto experts = ToDevice(list);
    HEARTH_EXPECT_CUDA(PrefillExpertsCuda(
        shape, experts.data(), static_cast<int>(list.size()),
        {groups.groups(), half.data(), weights.data(), act.data(), products.data()}, nullptr));
    HEARTH_EXPECT_CUDA(cudaDeviceSynchronize());
  }
  Floats values;
  for (const uint16_t bits : ToHost(products)) values.push_back(F16ToF32(bits));
  EXPECT_TRUE(std::isnan(values.back())) << "wrote past the end";
  values.pop_back();
  return values;
}

std::vector<PrefillExpert> AllOf(Slots& slots) {
  std::vector<PrefillExpert> list;
  for (int e = 0; e < slots.n(); ++e) list.push_back(slots.Entry(e));
  return list;
}

// A place's products, with what the device rounds rounded.
std::vector<Product> Want(const Expert& expert, const float* h, int width, float weight) {
  Floats x(h, h + width), act;
  std::ranges::transform(x, x.begin(), RoundedToHalf);
  const auto gate = RoundedMatrix(expert.gate).Times(x.data());
  const auto up = RoundedMatrix(expert.up).Times(x.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double value = gate[i].value / (1 + std::exp(-gate[i].value)) * up[i].value;
    act.push_back(RoundedToHalf(static_cast<float>(value)));
  }
  auto products = RoundedMatrix(expert.down).Times(act.data());
  for (Product& product : products) product.value *= weight, product.size *= std::abs(weight);
  return products;
}

Batch RandomBatch(int n_rows, int top_k, int width, int n_experts, uint32_t seed) {
  Batch batch{n_rows, top_k, RandomFloats(int64_t{n_rows} * width, seed, 0.1f), {}, {}};
  std::mt19937 random(seed);
  for (int t = 0; t < n_rows; ++t) {
    Ids all(static_cast<size_t>(n_experts));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin() + 1, all.end() - 1,
                 random);  // the first: every row's, the last: none's
    for (int k = 0; k < top_k; ++k) {
      batch.ids.push_back(all[static_cast<size_t>(k)]);
      batch.weights.push_back(0.05f + 0.1f * static_cast<float>(random() % 7));
    }
  }
  return batch;
}

TEST_F(PrefillExpertsTest, ProductsAgreeWithSumsInDouble) {
  struct Case {
    int width, inner, top_k, n_rows;
  };
  for (const auto& [width, inner, top_k, n_rows] : {Case{64, 64, 1, 9},
                                                    {128, 192, 3, 17},
                                                    {320, 64, 5, 40},
                                                    {64, 128, 2, 150},
                                                    {192, 320, 3, 65},
                                                    {2048, 512, 3, 10}}) {
    SCOPED_TRACE(::testing::Message() << width << " x " << inner << ", " << n_rows << " rows");
    Slots slots(9, width, inner);
    const Batch batch = RandomBatch(n_rows, top_k, width, slots.n(), 5);
    const Floats got = Compute(slots, batch, {AllOf(slots)});
    int n_off = 0, n_seen = 0;
    double worst = 0;
    for (int p = 0; p < n_rows * top_k; p += 1 + p / 40) {
      const auto at = static_cast<size_t>(p);
      const auto want = Want(*slots.experts[static_cast<size_t>(batch.ids[at])],
                             batch.h.data() + p / top_k * width, width, batch.weights[at]);
      for (int i = 0; i < width; ++i) {
        const Product& product = want[static_cast<size_t>(i)];
        const double error = std::abs(got[static_cast<size_t>(p * width + i)] - product.value);
        // The product's own rounding, and a value of act here and there that rounds the other way.
        if (!(error <= 0x1p-11 * std::abs(product.value) + 1e-4 * product.size + 1e-7)) ++n_off;
        worst = std::max(worst, error / product.size);
        ++n_seen;
      }
    }
    EXPECT_EQ(n_off, 0) << "of " << n_seen << ", worst " << worst << " of the terms' size";
  }
}

TEST_F(PrefillExpertsTest, BatchAndListsDoNotChangeABit) {
  constexpr int kRows = 80, kTopK = 4, kWidth = 256;
  Slots slots(9, kWidth, 128);
  const Batch batch = RandomBatch(kRows, kTopK, kWidth, slots.n(), 6);
  const Floats all = Compute(slots, batch, {AllOf(slots)});
  EXPECT_EQ(std::ranges::count_if(all, [](float value) { return std::isnan(value); }), 0);
  const Floats streamed =
      Compute(slots, batch,
              {{slots.Entry(3), slots.Entry(0)},
               {},
               {slots.Entry(8), slots.Entry(7), slots.Entry(1), slots.Entry(2)},
               {slots.Entry(4), {.slot = nullptr, .expert = 0}, slots.Entry(5), slots.Entry(6)}});
  EXPECT_EQ(streamed, all);
  for (const int first : {0, 33, 79}) {
    const Floats one = Compute(slots, Cut(batch, first, 1), {AllOf(slots)});
    EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + first * kTopK * kWidth)) << first;
  }
}

TEST_F(PrefillExpertsTest, ExpertsThatAreNotListedAreLeftAlone) {
  constexpr int kRows = 20, kTopK = 3, kWidth = 64;
  Slots slots(9, kWidth, 64);
  const Batch batch = RandomBatch(kRows, kTopK, kWidth, slots.n(), 7);
  const Floats got =
      Compute(slots, batch, {{slots.Entry(5), {.slot = nullptr, .expert = 0}, slots.Entry(2)}});
  for (size_t i = 0; i < got.size(); ++i) {
    const int id = batch.ids[i / kWidth];
    EXPECT_EQ(std::isnan(got[i]), id != 5 && id != 2) << "place " << i / kWidth;
  }
}

TEST_F(PrefillExpertsTest, PlacesAddUpInTheOrderOfTheChoice) {
  constexpr int kRows = 7, kTopK = 10, kWidth = 72, kExperts = 5;
  std::mt19937 random(3);
  Ids ids;
  for (int p = 0; p < kRows * kTopK; ++p) ids.push_back(static_cast<int32_t>(random() % kExperts));
  std::vector<uint16_t> products;
  for (const float value : RandomFloats(kRows * kTopK * kWidth, 8))
    products.push_back(F32ToF16(value));
  const auto device_ids = ToDevice(ids);
  const auto device_products = ToDevice(products);
  for (const std::vector<uint8_t>& is_here :
       {std::vector<uint8_t>{}, {1, 0, 1, 1, 0}, {0, 0, 0, 0, 0}}) {
    const auto mask = ToDevice(is_here);
    auto out = Poisoned<float>(kRows * kWidth + 1);
    HEARTH_EXPECT_CUDA(CombinePlacesCuda(kRows, kTopK, kWidth, device_ids.data(), mask.data(),
                                         device_products.data(), out.data(), nullptr));
    const Floats got = ToHost(out);
    EXPECT_TRUE(std::isnan(got.back())) << "wrote past the end";
    for (int i = 0; i < kRows * kWidth; ++i) {
      float want = 0;
      for (int k = 0; k < kTopK; ++k) {
        const int p = i / kWidth * kTopK + k;
        const auto id = static_cast<size_t>(ids[static_cast<size_t>(p)]);
        if (!is_here.empty() && is_here[id] == 0) continue;
        want += F16ToF32(products[static_cast<size_t>(p * kWidth + i % kWidth)]);
      }
      EXPECT_EQ(got[static_cast<size_t>(i)], want) << i;
    }
  }
}

TEST_F(PrefillExpertsTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  const auto run = [](const ExpertsShape& shape, int n_listed) {
    return PrefillExpertsCuda(shape, nullptr, n_listed, {}, nullptr);
  };
  EXPECT_EQ(run({.n_rows = 0, .top_k = 2, .width = 64, .inner = 64}, 3), cudaSuccess);
  EXPECT_EQ(run({.n_rows = 9, .top_k = 2, .width = 64, .inner = 64}, 0), cudaSuccess);
  EXPECT_EQ(run({.n_rows = 9, .top_k = 2, .width = 96, .inner = 64}, 1), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = 9, .top_k = 2, .width = 64, .inner = 80}, 1), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = 9, .top_k = 65, .width = 64, .inner = 64}, 1), cudaErrorInvalidValue);
  EXPECT_EQ(run({.n_rows = 9, .top_k = 2, .width = 64, .inner = 64}, 4097), cudaErrorInvalidValue);
  EXPECT_EQ(GroupPlacesCuda(1, 0, nullptr, {}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(CombinePlacesCuda(1, 1, 12, nullptr, nullptr, nullptr, nullptr, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
