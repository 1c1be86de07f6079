// The experts of a decode step of the 80B model.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/cuda_cases.h"
#include "bench/cuda_experts.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/cuda/decode_experts.h"

namespace hearth::bench {
namespace {

BenchExperts MakeExperts() {
  constexpr int64_t kCodes = int64_t{kExpertWidth} * kExpertInner / 2, kScales = kCodes / 16;
  constexpr int64_t kSlot = 3 * (kCodes + kScales) + 4096;
  worker::ExpertsShape shape{.width = kExpertWidth, .inner = kExpertInner};
  std::copy(kNf4Levels.begin(), kNf4Levels.end(), shape.levels.values);
  shape.gate = {.data = 4096, .scales = 4096 + 3 * kCodes, .factor = 0};
  shape.up = {.data = 4096 + kCodes, .scales = shape.gate.scales + kScales, .factor = 4};
  shape.down = {.data = 4096 + 2 * kCodes, .scales = shape.up.scales + kScales, .factor = 8};
  static const auto slots = RandomDeviceBits(size_t{kExperts} * kSlot);
  auto* base = static_cast<uint8_t*>(slots.get());
  const std::vector<uint16_t> scales(3 * kScales / 2, F32ToF16(0.02f));
  const float factors[] = {1, 1, 1};
  for (int e = 0; e < kExperts; ++e) {
    cudaMemcpy(base + e * kSlot, factors, sizeof(factors), cudaMemcpyHostToDevice);
    cudaMemcpy(base + e * kSlot + shape.gate.scales, scales.data(), scales.size() * 2,
               cudaMemcpyHostToDevice);
  }
  return {shape, base, kSlot};
}

using Experts = cudaError_t (*)(const worker::ExpertsShape&, const worker::ExpertPlace*,
                                const float*, float*, float*, cudaStream_t);

cudaError_t DecodeExperts(const worker::ExpertsShape& shape, const worker::ExpertPlace* places,
                          const float* h, float* act, float* out, cudaStream_t stream) {
  static const worker::DecodeLevels levels = worker::MakeDecodeLevels(kNf4Levels).value();
  return worker::DecodeExpertsCuda(shape, levels, places, h, act, out, stream);
}

// n_rows tokens that choose 10 of n_experts experts each.
void AddExperts(const std::string& op, Experts experts, int n_rows, int n_experts,
                CudaCases* cases) {
  constexpr int kSteps = 24;
  worker::ExpertsShape shape = AllExperts().shape;
  shape.n_rows = n_rows, shape.top_k = kTopK;
  const auto table = ExpertTables(kSteps, n_rows, kTopK, n_experts);
  const auto h = RandomDeviceFloats(static_cast<size_t>(n_rows) * kExpertWidth);
  const auto act = RandomDeviceFloats(static_cast<size_t>(n_rows) * kTopK * kExpertInner);
  const auto out = RandomDeviceFloats(static_cast<size_t>(n_rows) * kExpertWidth);
  double left = n_experts;  // n (1 - 10 / n)^rows are in no row
  for (int i = 0; i < n_rows; ++i) left *= 1 - double{kTopK} / n_experts;
  const auto run = [=](int i, cudaStream_t stream) {
    const auto* chosen =
        static_cast<const worker::ExpertPlace*>(table.get()) + int64_t{i % kSteps} * n_rows * kTopK;
    return experts(shape, chosen, h.get(), act.get(), out.get(), stream);
  };
  cases->push_back({.op = op,
                    .shape = "10 of " + std::to_string(n_experts) + " x " + std::to_string(n_rows),
                    .bytes = (n_experts - left) * kExpertBytes,
                    .flops = 6.0 * kExpertWidth * kExpertInner * n_rows * kTopK,
                    .run = run});
}

}  // namespace

const BenchExperts& AllExperts() {
  static const BenchExperts experts = MakeExperts();
  return experts;
}

std::shared_ptr<void> ExpertTables(int n_steps, int n_rows, int top_k, int n_experts) {
  const BenchExperts& all = AllExperts();
  std::mt19937 random(3);
  std::vector<worker::ExpertPlace> places;
  for (int row = 0; row < n_steps * n_rows; ++row) {
    std::vector<int> ids(static_cast<size_t>(n_experts));
    std::iota(ids.begin(), ids.end(), row / n_rows % (kExperts / n_experts) * n_experts);
    std::shuffle(ids.begin(), ids.end(), random);
    for (int k = 0; k < top_k; ++k) {
      places.push_back(
          {.slot = all.slots + ids[static_cast<size_t>(k)] * all.slot_bytes, .weight = 0.1f});
    }
  }
  auto table = RandomDeviceBits(places.size() * sizeof(places[0]));
  cudaMemcpy(table.get(), places.data(), places.size() * sizeof(places[0]), cudaMemcpyHostToDevice);
  return table;
}

void AddExpertCases(CudaCases* cases) {
  for (const int n : {1, 2, 4, 8}) {
    AddExperts("experts nf4", worker::ExpertsCuda, n, 512, cases);
    AddExperts("decode experts", DecodeExperts, n, 512, cases);
  }
  // The rows of a draft's check share many.
  AddExperts("experts nf4", worker::ExpertsCuda, 4, 16, cases);
  AddExperts("decode experts", DecodeExperts, 4, 16, cases);
}

}  // namespace hearth::bench
