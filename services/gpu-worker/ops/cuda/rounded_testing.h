// Whether what a kernel rounded for the integer kernels is what they would have rounded themselves.
#pragma once

#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/decode_linear.h"
#include "services/gpu-worker/ops/cuda/matrix_testing.h"

namespace hearth::worker {

struct RoundedBuffer {
  RoundedBuffer(int n_rows, int width)
      : words(Poisoned<uint32_t>(int64_t{n_rows} * width / 4)),
        scales(Poisoned<float>(int64_t{n_rows} * width / 64)) {}
  RoundedRows rows() { return {words.data(), scales.data()}; }
  DeviceBuffer<uint32_t> words;
  DeviceBuffer<float> scales;
};

// A linear layer of x gives the same bits with and without `rounded`.
inline void ExpectSameProducts(int n_rows, int width, const float* x, const RoundedRows& rounded) {
  constexpr int kOut = 48;
  const HostMatrix host(WeightKind::kTiled4, kOut, width, 99);
  const DeviceCopy device(host);
  const auto compute = [&](const RoundedRows& with) {
    auto y = Poisoned<float>(int64_t{n_rows} * kOut);
    const DecodeLinear linear = {.kind = DecodeKind::kTiled4,
                                 .weights = device.matrix,
                                 .levels = MakeDecodeLevels(host.ref.levels).value(),
                                 .y = y.data()};
    HEARTH_EXPECT_CUDA(DecodeLinearsCuda(&linear, 1, n_rows, x, with, nullptr));
    return ToHost(y);
  };
  EXPECT_EQ(compute(rounded), compute({}));
}

}  // namespace hearth::worker
