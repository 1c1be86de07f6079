// The float32 linear layers of a decode step of the 80B model.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/cuda_cases.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/cuda/linear.h"

namespace hearth::bench {
namespace {

using worker::DeviceMatrix;

// Together larger than any L2.
constexpr double kRotatedBytes = 400e6;

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
}

}  // namespace hearth::bench
