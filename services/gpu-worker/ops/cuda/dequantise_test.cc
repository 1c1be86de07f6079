// Tiles as bf16: bit for bit what the CPU's DequantizeRow rounds to.
#include "services/gpu-worker/ops/cuda/dequantise.h"

#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/matrix_testing.h"

namespace hearth::worker {
namespace {

using DequantiseCudaTest = CudaTest;

cudaError_t ToBf16(WeightKind kind, const DeviceMatrix& matrix, uint16_t* to) {
  return kind == WeightKind::kTiled4 ? Tiled4ToBf16Cuda(matrix, to, nullptr)
                                     : Tiled8ToBf16Cuda(matrix, to, nullptr);
}

TEST_F(DequantiseCudaTest, EveryValueIsTheCpusRounded) {
  for (const WeightKind kind : {WeightKind::kTiled4, WeightKind::kTiled8}) {
    for (const int64_t out : {1, 15, 16, 17, 33, 2000}) {
      for (const int64_t in : {64, 192, 2048}) {
        const HostMatrix host(kind, out, in, static_cast<uint32_t>(out + in));
        const DeviceCopy device(host);
        auto to = Poisoned<uint16_t>(out * in + 1);
        HEARTH_EXPECT_CUDA(ToBf16(kind, device.matrix, to.data()));
        const std::vector<uint16_t> got = ToHost(to);
        std::vector<float> row(static_cast<size_t>(in));
        int64_t n_off = 0;
        for (int64_t r = 0; r < out; ++r) {
          DequantizeRow(host.ref, r, row);
          for (int64_t i = 0; i < in; ++i) {
            const uint16_t bits = got[static_cast<size_t>(r * in + i)];
            if (bits != F32ToBF16(row[static_cast<size_t>(i)])) ++n_off;
          }
        }
        EXPECT_EQ(n_off, 0) << "kind " << static_cast<int>(kind) << " [" << out << ", " << in
                            << "]";
        EXPECT_EQ(got.back(), 0xffff) << "wrote past the end";
      }
    }
  }
}

TEST_F(DequantiseCudaTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  for (const WeightKind kind : {WeightKind::kTiled4, WeightKind::kTiled8}) {
    EXPECT_EQ(ToBf16(kind, {.out = 0, .in = 64}, nullptr), cudaSuccess);
    EXPECT_EQ(ToBf16(kind, {.out = 16, .in = 32}, nullptr), cudaErrorInvalidValue);
  }
}

}  // namespace
}  // namespace hearth::worker
