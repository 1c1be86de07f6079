// The linear layers and experts of a decode step of the 80B model.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/cuda_cases.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/cuda/dequantise.h"
#include "services/gpu-worker/ops/cuda/experts.h"
#include "services/gpu-worker/ops/cuda/linear.h"

namespace hearth::bench {
namespace {

using worker::DeviceMatrix;

// Together larger than any L2.
constexpr double kRotatedBytes = 400e6;
constexpr int kWidth = 2048, kInner = 512, kTopK = 10;

// Scales, and bf16 values, that differ from `bits` in what `mask` lets vary: random bits alone
// would hold infinities.
std::shared_ptr<void> DeviceHalves(size_t n, uint16_t bits, uint16_t mask) {
  std::vector<uint16_t> values(n);
  std::minstd_rand random(4);
  for (uint16_t& value : values) value = static_cast<uint16_t>(bits ^ ((random() >> 8) & mask));
  void* data = nullptr;
  if (cudaMalloc(&data, n * 2) != cudaSuccess ||
      cudaMemcpy(data, values.data(), n * 2, cudaMemcpyHostToDevice) != cudaSuccess) {
    std::fprintf(stderr, "no memory for a case\n");
    std::exit(1);
  }
  return {data, [](void* at) { cudaFree(at); }};
}
std::shared_ptr<void> DeviceScales(size_t n) { return DeviceHalves(n, F32ToF16(0.02f), 0x1ff); }
std::shared_ptr<void> DeviceBf16(size_t n) { return DeviceHalves(n, F32ToBF16(0.02f), 0x807f); }

worker::Levels Nf4() {
  worker::Levels levels;
  std::copy(kNf4Levels.begin(), kNf4Levels.end(), levels.values);
  return levels;
}

using Linear = cudaError_t (*)(const DeviceMatrix&, int, const float*, float*, cudaStream_t);

void AddLinear(WeightKind kind, int64_t out, int64_t in, int n_rows, CudaCases* cases) {
  const LinearRef ref{.kind = kind, .out = out, .in = in};
  const LinearBytes bytes = BytesOf(ref);
  const double weight_bytes = static_cast<double>(bytes.data + bytes.absmax);
  const int n_copies = 2 + static_cast<int>(kRotatedBytes / weight_bytes);
  const auto copies = static_cast<size_t>(n_copies);
  const bool is_bf16 = kind == WeightKind::kBF16;
  const auto data =
      is_bf16 ? DeviceBf16(copies * bytes.data / 2) : RandomDeviceBits(copies * bytes.data);
  const auto scales = DeviceScales(is_bf16 ? 1 : copies * bytes.absmax / 2);
  const auto x = RandomDeviceFloats(static_cast<size_t>(n_rows * in));
  const auto y = RandomDeviceFloats(static_cast<size_t>(n_rows * out));
  const Linear linear = kind == WeightKind::kTiled4   ? worker::Tiled4LinearCuda
                        : kind == WeightKind::kTiled8 ? worker::Tiled8LinearCuda
                                                      : worker::Bf16LinearCuda;
  const auto run = [=](int i, cudaStream_t stream) {
    const size_t copy = static_cast<size_t>(i % n_copies);
    const DeviceMatrix matrix = {
        .data = static_cast<const uint8_t*>(data.get()) + copy * bytes.data,
        .scales = static_cast<const uint16_t*>(scales.get()) + copy * bytes.absmax / 2,
        .out = out,
        .in = in,
        .factor = 1,
        .levels = Nf4()};
    return linear(matrix, n_rows, x.get(), y.get(), stream);
  };
  cases->push_back({.op = kind == WeightKind::kTiled4 ? "linear nf4"
                          : is_bf16                   ? "linear bf16"
                                                      : "linear 8-bit",
                    .shape = "[" + std::to_string(out) + ", " + std::to_string(in) + "] x " +
                             std::to_string(n_rows),
                    .bytes = weight_bytes + 4.0 * n_rows * static_cast<double>(in + out),
                    .flops = 2.0 * n_rows * static_cast<double>(out * in),
                    .run = run});
}

// What a prefill's matrix product by cuBLASLt reads instead of the tiles.
void AddDequantise(int64_t out, int64_t in, CudaCases* cases) {
  const LinearRef ref{.kind = WeightKind::kTiled4, .out = out, .in = in};
  const LinearBytes bytes = BytesOf(ref);
  const int n_copies = 2 + static_cast<int>(kRotatedBytes / static_cast<double>(bytes.data));
  const auto copies = static_cast<size_t>(n_copies);
  const auto data = RandomDeviceBits(copies * bytes.data);
  const auto scales = DeviceScales(bytes.absmax / 2);
  const auto to = DeviceBf16(static_cast<size_t>(out * in));
  const auto run = [=](int i, cudaStream_t stream) {
    const size_t copy = static_cast<size_t>(i % n_copies);
    const DeviceMatrix matrix = {
        .data = static_cast<const uint8_t*>(data.get()) + copy * bytes.data,
        .scales = static_cast<const uint16_t*>(scales.get()),
        .out = out,
        .in = in,
        .factor = 1,
        .levels = Nf4()};
    return worker::Tiled4ToBf16Cuda(matrix, static_cast<uint16_t*>(to.get()), stream);
  };
  cases->push_back({.op = "dequantise nf4",
                    .shape = "[" + std::to_string(out) + ", " + std::to_string(in) + "] to bf16",
                    .bytes = static_cast<double>(bytes.data + bytes.absmax) +
                             2.0 * static_cast<double>(out * in),
                    .flops = 0,
                    .run = run});
}

// n_rows tokens that choose 10 of 512 experts each.
void AddExperts(int n_rows, CudaCases* cases) {
  constexpr int kExperts = 512, kChoices = 24;
  constexpr int64_t kCodes = int64_t{kWidth} * kInner / 2, kScales = kCodes / 16;
  worker::ExpertsShape shape{
      .n_rows = n_rows, .top_k = kTopK, .width = kWidth, .inner = kInner, .levels = Nf4()};
  // Scales and factors lie beside the slots, so that random codes can be made in one go: offsets
  // need not stay within a slot's codes.
  constexpr int64_t kSlot = 3 * (kCodes + kScales) + 4096;
  shape.gate = {.data = 4096, .scales = 4096 + 3 * kCodes, .factor = 0};
  shape.up = {.data = 4096 + kCodes, .scales = shape.gate.scales + kScales, .factor = 4};
  shape.down = {.data = 4096 + 2 * kCodes, .scales = shape.up.scales + kScales, .factor = 8};
  const auto slots = RandomDeviceBits(size_t{kExperts} * kSlot);
  auto* base = static_cast<uint8_t*>(slots.get());
  const std::vector<uint16_t> scales(3 * kScales / 2, F32ToF16(0.02f));
  const float factors[] = {1, 1, 1};
  for (int e = 0; e < kExperts; ++e) {
    cudaMemcpy(base + e * kSlot, factors, sizeof(factors), cudaMemcpyHostToDevice);
    cudaMemcpy(base + e * kSlot + shape.gate.scales, scales.data(), scales.size() * 2,
               cudaMemcpyHostToDevice);
  }
  std::mt19937 random(3);
  std::vector<worker::ExpertPlace> places;
  for (int p = 0; p < kChoices * n_rows * kTopK; ++p) {
    places.push_back({.slot = base + random() % kExperts * kSlot, .weight = 0.1f});
  }
  const auto table = RandomDeviceBits(places.size() * sizeof(places[0]));
  cudaMemcpy(table.get(), places.data(), places.size() * sizeof(places[0]), cudaMemcpyHostToDevice);
  const auto h = RandomDeviceFloats(static_cast<size_t>(n_rows) * kWidth);
  const auto act = RandomDeviceFloats(static_cast<size_t>(n_rows) * kTopK * kInner);
  const auto out = RandomDeviceFloats(static_cast<size_t>(n_rows) * kWidth);
  double touched = kExperts;  // 512 (1 - (511/512)^places) distinct ones
  for (int i = 0; i < n_rows * kTopK; ++i) touched *= 1 - 1.0 / kExperts;
  const auto run = [=](int i, cudaStream_t stream) {
    const auto* chosen = static_cast<const worker::ExpertPlace*>(table.get()) +
                         int64_t{i % kChoices} * n_rows * kTopK;
    return worker::ExpertsCuda(shape, chosen, h.get(), act.get(), out.get(), stream);
  };
  cases->push_back(
      {.op = "experts nf4",
       .shape = "10 of 512 x " + std::to_string(n_rows),
       .bytes = (kExperts - touched) * 3 * (kCodes + kScales),
       .flops = 6.0 * kWidth * kInner * n_rows * kTopK,
       .run = [=, kept = slots](int i, cudaStream_t stream) { return run(i, stream); }});
}

}  // namespace

void AddLinearCases(CudaCases* cases) {
  for (const int n : {1, 2, 4, 8}) AddLinear(WeightKind::kTiled4, 12288, 2048, n, cases);
  for (const int n : {1, 8}) {
    AddLinear(WeightKind::kTiled4, 9216, 2048, n, cases);    // q, k and v
    AddLinear(WeightKind::kTiled4, 2048, 4096, n, cases);    // o_proj, out_proj
    AddLinear(WeightKind::kTiled4, 512, 2048, n, cases);     // the shared expert's gate
    AddLinear(WeightKind::kTiled4, 2048, 512, n, cases);     // and down
    AddLinear(WeightKind::kTiled8, 151936, 2048, n, cases);  // the head
    AddLinear(WeightKind::kBF16, 512, 2048, n, cases);       // the router
    AddLinear(WeightKind::kBF16, 64, 2048, n, cases);        // beta and alpha
    AddLinear(WeightKind::kBF16, 12288, 2048, n, cases);
  }
  for (const int n : {1, 2, 4, 8}) AddExperts(n, cases);
  AddDequantise(12288, 2048, cases);
}

}  // namespace hearth::bench
