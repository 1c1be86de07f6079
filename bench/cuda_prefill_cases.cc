// The linear layers and experts of a prefill of the 80B model, all experts in device memory.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bench/cuda_cases.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/cuda/prefill_experts.h"
#include "services/gpu-worker/ops/cuda/prefill_linear.h"

namespace hearth::bench {
namespace {

using worker::PrefillTile;

constexpr double kRotatedBytes = 200e6;  // weights of a shape, together larger than any L2
constexpr int kWidth = 2048, kInner = 512, kExperts = 512, kTopK = 10;

void Require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "no memory for a case: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

std::shared_ptr<uint8_t> DeviceBytes(size_t bytes) {
  void* data = nullptr;
  Require(cudaMalloc(&data, bytes));
  return {static_cast<uint8_t*>(data), [](uint8_t* at) { cudaFree(at); }};
}

template <typename T>
std::shared_ptr<T> ToDevice(const std::vector<T>& values) {
  const auto memory = DeviceBytes(values.size() * sizeof(T));
  Require(
      cudaMemcpy(memory.get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return {memory, reinterpret_cast<T*>(memory.get())};
}

// `copies` times the same random bits.
std::shared_ptr<uint8_t> Repeated(size_t bytes, int copies) {
  const auto one = RandomDeviceBits(bytes);
  auto all = DeviceBytes(bytes * static_cast<size_t>(copies));
  for (int i = 0; i < copies; ++i) {
    Require(cudaMemcpy(all.get() + static_cast<size_t>(i) * bytes, one.get(), bytes,
                       cudaMemcpyDeviceToDevice));
  }
  return all;
}

// 16-bit values near `bits`, whose sign and lower bits vary as `mask` lets them.
std::shared_ptr<uint16_t> Halves(size_t n, uint16_t bits, uint16_t mask) {
  std::vector<uint16_t> values(n);
  std::minstd_rand random(4);
  for (uint16_t& value : values) value = static_cast<uint16_t>(bits ^ ((random() >> 8) & mask));
  return ToDevice(values);
}

worker::Levels Nf4() {
  worker::Levels levels;
  std::copy(kNf4Levels.begin(), kNf4Levels.end(), levels.values);
  return levels;
}

const char* NameOf(PrefillTile tile) {
  switch (tile) {
    case PrefillTile::kSmall:
      return ", small tiles";
    case PrefillTile::kMedium:
      return ", medium tiles";
    case PrefillTile::kLarge:
      return ", large tiles";
    default:
      return "";
  }
}

void AddLinear(WeightKind kind, int64_t out, int64_t in, int n_rows, PrefillTile tile,
               CudaCases* cases) {
  const LinearBytes bytes = BytesOf({.kind = kind, .out = out, .in = in});
  const bool is_bf16 = kind == WeightKind::kBF16;
  const auto weight_bytes = static_cast<double>(bytes.data + bytes.absmax);
  const int n_copies = 2 + static_cast<int>(kRotatedBytes / weight_bytes);
  const auto data = is_bf16 ? std::shared_ptr<uint8_t>() : Repeated(bytes.data, n_copies);
  const auto values = Halves(is_bf16 ? static_cast<size_t>(out * in) : 1, F32ToBF16(0.02f), 0x807f);
  const auto scales = Halves(std::max<size_t>(bytes.absmax / 2, 1), F32ToF16(0.02f), 0x1ff);
  const auto x = Halves(static_cast<size_t>(n_rows * in), F32ToF16(0.5f), 0x83ff);
  const auto high = Halves(static_cast<size_t>(n_rows * in), F32ToBF16(0.5f), 0x807f);
  const auto y = DeviceBytes(static_cast<size_t>(n_rows * out) * 4);
  const auto run = [=](int i, cudaStream_t stream) {
    const auto copy = static_cast<size_t>(i % n_copies);
    const worker::DeviceMatrix matrix = {
        .data = is_bf16 ? reinterpret_cast<const uint8_t*>(values.get())
                        : data.get() + copy * bytes.data,
        .scales = scales.get(),
        .out = out,
        .in = in,
        .factor = 1,
        .levels = Nf4()};
    return worker::PrefillLinearCuda(kind, matrix, n_rows,
                                     {.half = x.get(), .high = high.get(), .low = high.get()},
                                     reinterpret_cast<float*>(y.get()), stream, tile);
  };
  cases->push_back({.op = is_bf16 ? "prefill linear bf16 split" : "prefill linear nf4",
                    .shape = "[" + std::to_string(out) + ", " + std::to_string(in) + "] x " +
                             std::to_string(n_rows) + NameOf(tile),
                    .bytes = weight_bytes + n_rows * (2.0 * static_cast<double>(in) +
                                                      4.0 * static_cast<double>(out)),
                    .flops = (is_bf16 ? 4.0 : 2.0) * n_rows * static_cast<double>(out * in),
                    .run = run});
}

// Slots of all experts: scales and factors beside each other's codes.
struct Slots {
  static constexpr int64_t kCodes = int64_t{kWidth} * kInner / 2, kScales = kCodes / 16;
  static constexpr int64_t kBytes = 4096 + 3 * (kCodes + kScales);

  Slots() {
    shape.top_k = kTopK, shape.width = kWidth, shape.inner = kInner, shape.levels = Nf4();
    shape.gate = {.data = 4096, .scales = 4096 + 3 * kCodes, .factor = 0};
    shape.up = {.data = 4096 + kCodes, .scales = shape.gate.scales + kScales, .factor = 4};
    shape.down = {.data = 4096 + 2 * kCodes, .scales = shape.up.scales + kScales, .factor = 8};
    memory = Repeated(kBytes, kExperts);
    const std::vector<uint16_t> scales(3 * kScales / 2, F32ToF16(0.02f));
    const float factors[] = {1, 1, 1};
    std::vector<worker::PrefillExpert> list;
    for (int e = 0; e < kExperts; ++e) {
      uint8_t* slot = memory.get() + e * kBytes;
      Require(cudaMemcpy(slot, factors, sizeof(factors), cudaMemcpyHostToDevice));
      Require(cudaMemcpy(slot + shape.gate.scales, scales.data(), scales.size() * 2,
                         cudaMemcpyHostToDevice));
      list.push_back({.slot = slot, .expert = e});
    }
    experts = ToDevice(list);
  }
  worker::ExpertsShape shape;
  std::shared_ptr<uint8_t> memory;
  std::shared_ptr<worker::PrefillExpert> experts;
};

// Each row chooses 10 of 512 experts at random.
std::vector<int32_t> RandomChoice(int n_rows) {
  std::mt19937 random(3);
  std::vector<int32_t> all(kExperts), ids;
  std::iota(all.begin(), all.end(), 0);
  for (int t = 0; t < n_rows; ++t) {
    for (size_t k = 0; k < kTopK; ++k) {
      std::swap(all[k], all[k + random() % (kExperts - k)]);
      ids.push_back(all[k]);
    }
  }
  return ids;
}

void AddExperts(const std::shared_ptr<Slots>& slots, int n_rows, CudaCases* cases) {
  const int n_places = n_rows * kTopK;
  const auto n = static_cast<size_t>(n_places);
  const auto ids = ToDevice(RandomChoice(n_rows));
  const auto offsets = ToDevice(std::vector<int32_t>(kExperts + 1)),
             order = ToDevice(std::vector<int32_t>(n));
  const auto h = Halves(static_cast<size_t>(n_rows) * kWidth, F32ToF16(0.5f), 0x83ff);
  const auto weights = ToDevice(std::vector<float>(n, 0.1f));
  const auto act = DeviceBytes(n * kInner * 2), products = DeviceBytes(n * kWidth * 2),
             out = DeviceBytes(static_cast<size_t>(n_rows) * kWidth * 4);
  auto* const act_values = reinterpret_cast<uint16_t*>(act.get());
  auto* const product_values = reinterpret_cast<uint16_t*>(products.get());
  worker::ExpertsShape shape = slots->shape;
  shape.n_rows = n_rows;
  const worker::PlaceGroups groups{offsets.get(), order.get()};
  const std::string name = "10 of 512 x " + std::to_string(n_rows);
  const double places = n_places;
  Require(worker::GroupPlacesCuda(n_places, kExperts, ids.get(), groups, nullptr));
  Require(cudaDeviceSynchronize());
  cases->push_back({.op = "prefill group places",
                    .shape = name,
                    .bytes = 8 * places,
                    .run = [=, kept = std::pair(offsets, order)](int, cudaStream_t stream) {
                      return worker::GroupPlacesCuda(n_places, kExperts, ids.get(), groups, stream);
                    }});
  cases->push_back({.op = "prefill experts nf4",
                    .shape = name,
                    .bytes = double{Slots::kBytes} * kExperts +
                             places * (2.0 * kWidth + 4.0 * kInner) + 2.0 * n_rows * kWidth,
                    .flops = 6.0 * kWidth * kInner * places,
                    .run = [=, kept = std::tuple(slots, offsets, order, act, products)](
                               int, cudaStream_t stream) {
                      return worker::PrefillExpertsCuda(
                          shape, slots->experts.get(), kExperts,
                          {groups, h.get(), weights.get(), act_values, product_values}, stream);
                    }});
  cases->push_back({.op = "prefill combine",
                    .shape = name,
                    .bytes = places * 2.0 * kWidth + 4.0 * n_rows * kWidth,
                    .run = [=, kept = products](int, cudaStream_t stream) {
                      return worker::CombinePlacesCuda(n_rows, kTopK, kWidth, ids.get(), nullptr,
                                                       product_values,
                                                       reinterpret_cast<float*>(out.get()), stream);
                    }});
}

}  // namespace

void AddPrefillCases(CudaCases* cases) {
  constexpr WeightKind kNf4 = WeightKind::kTiled4;
  for (const int n_rows : {512, 2048}) {
    for (const PrefillTile tile :
         {PrefillTile::kBest, PrefillTile::kSmall, PrefillTile::kMedium, PrefillTile::kLarge}) {
      AddLinear(kNf4, 12288, 2048, n_rows, tile, cases);  // in_proj_qkvz
      AddLinear(kNf4, 2048, 4096, n_rows, tile, cases);   // o_proj, out_proj
      AddLinear(kNf4, 512, 2048, n_rows, tile, cases);    // k, v, the shared expert
    }
    AddLinear(kNf4, 8192, 2048, n_rows, PrefillTile::kBest, cases);  // q and gate
    AddLinear(kNf4, 2048, 512, n_rows, PrefillTile::kBest, cases);   // the shared expert's down
    AddLinear(WeightKind::kBF16, 512, 2048, n_rows, PrefillTile::kBest, cases);  // the router
    AddLinear(WeightKind::kBF16, 64, 2048, n_rows, PrefillTile::kBest, cases);   // beta and alpha
  }
  const auto slots = std::make_shared<Slots>();
  for (const int n_rows : {512, 2048, 4096, 64}) AddExperts(slots, n_rows, cases);
}

}  // namespace hearth::bench
