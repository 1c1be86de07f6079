// The linear kernels against sums in double over awkward shapes.
#include "services/gpu-worker/ops/cuda/linear.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/matrix_testing.h"

namespace hearth::worker {
namespace {

using LinearCudaTest = CudaTest;
using Floats = std::vector<float>;
using Linear = cudaError_t (*)(const DeviceMatrix&, int, const float*, float*, cudaStream_t);

Linear LinearOf(WeightKind kind) {
  return kind == WeightKind::kTiled4   ? Tiled4LinearCuda
         : kind == WeightKind::kTiled8 ? Tiled8LinearCuda
                                       : Bf16LinearCuda;
}

constexpr WeightKind kKinds[] = {WeightKind::kTiled4, WeightKind::kTiled8, WeightKind::kBF16};
constexpr int kMaxRows = 11;  // one group of 8 and one of 3

// y for the first n_rows of x, with one poisoned value behind them.
Floats Compute(WeightKind kind, const DeviceMatrix& matrix, int n_rows, const float* x) {
  auto y = Poisoned<float>(n_rows * matrix.out + 1);
  HEARTH_EXPECT_CUDA(LinearOf(kind)(matrix, n_rows, x, y.data(), nullptr));
  return ToHost(y);
}

void ExpectProducts(WeightKind kind, int64_t out, int64_t in, std::initializer_list<int> batches) {
  const HostMatrix host(kind, out, in, static_cast<uint32_t>(out * 7 + in));
  const DeviceCopy device(host);
  const Floats x = RandomFloats(kMaxRows * in, static_cast<uint32_t>(in));
  const auto device_x = ToDevice(x);
  std::vector<std::vector<Product>> want;
  const int largest = std::max(batches);
  for (int t = 0; t < largest; ++t) want.push_back(ProductsInDouble(host.ref, x.data() + t * in));
  for (const int n_rows : batches) {
    const Floats got = Compute(kind, device.matrix, n_rows, device_x.data());
    int n_off = 0;
    double worst = 0;
    for (int t = 0; t < n_rows; ++t) {
      for (int64_t r = 0; r < out; ++r) {
        const Product& product = want[static_cast<size_t>(t)][static_cast<size_t>(r)];
        const double error = std::abs(got[static_cast<size_t>(t * out + r)] - product.value);
        // Sums of at most in / 32 terms a lane, then 32 lanes: far fewer roundings than terms.
        if (!(error <= 2e-6 * product.size + 1e-9)) ++n_off, worst = std::max(worst, error);
      }
    }
    EXPECT_EQ(n_off, 0) << "kind " << static_cast<int>(kind) << " [" << out << ", " << in << "] x "
                        << n_rows << ", worst error " << worst;
    EXPECT_TRUE(std::isnan(got.back())) << "wrote past the end";
  }
}

TEST_F(LinearCudaTest, ProductsAgreeWithSumsInDouble) {
  for (const WeightKind kind : kKinds) {
    for (const int64_t out : {1, 15, 16, 17, 33, 512}) {
      for (const int64_t in : {64, 128, 192, 512, 2048, 4096}) {
        ExpectProducts(kind, out, in, {1, 2, 3, 4, 5, 6, 7, 8, kMaxRows});
      }
    }
    ExpectProducts(kind, 12288, 2048, {1, 2});
    ExpectProducts(kind, 40000, 64, {1, 8});
  }
  for (const int64_t in : {8, 72, 1000}) ExpectProducts(WeightKind::kBF16, 33, in, {1, 8});
}

TEST_F(LinearCudaTest, ARowsBitsDoNotDependOnItsBatch) {
  for (const WeightKind kind : kKinds) {
    constexpr int64_t kOut = 272, kIn = 2048;
    const HostMatrix host(kind, kOut, kIn, 3);
    const DeviceCopy device(host);
    const auto x = ToDevice(RandomFloats(kMaxRows * kIn, 4));
    const Floats all = Compute(kind, device.matrix, kMaxRows, x.data());
    for (int n = 1; n < kMaxRows; ++n) {
      const Floats some = Compute(kind, device.matrix, n, x.data());
      EXPECT_TRUE(std::equal(some.begin(), some.end() - 1, all.begin())) << n;
      const Floats last = Compute(kind, device.matrix, 1, x.data() + n * kIn);
      EXPECT_TRUE(std::equal(last.begin(), last.end() - 1, all.begin() + n * kOut)) << n;
    }
  }
}

TEST_F(LinearCudaTest, LevelsAreExact) {
  // One weight a row is not multiplied by zero, and its scale is 1: y is the level itself.
  for (const int column : {0, 31, 32, 63}) {
    HostMatrix host(WeightKind::kTiled4, 16, 64, 9);
    std::fill(host.scales.begin(), host.scales.end(), F32ToF16(1));
    host.ref.factor = 1;
    const DeviceCopy device(host);
    Floats x(64, 0.f);
    x[static_cast<size_t>(column)] = 1;
    const Floats got = Compute(WeightKind::kTiled4, device.matrix, 1, ToDevice(x).data());
    for (int64_t r = 0; r < 16; ++r) {
      Floats row(64);
      DequantizeRow(host.ref, r, row);
      EXPECT_EQ(got[static_cast<size_t>(r)], row[static_cast<size_t>(column)]) << r;
    }
  }
}

TEST_F(LinearCudaTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  for (const WeightKind kind : kKinds) {
    EXPECT_EQ(LinearOf(kind)({.out = 16, .in = 64}, 0, nullptr, nullptr, nullptr), cudaSuccess);
    EXPECT_EQ(LinearOf(kind)({.out = 0, .in = 64}, 1, nullptr, nullptr, nullptr), cudaSuccess);
    EXPECT_EQ(LinearOf(kind)({.out = 16, .in = 60}, 1, nullptr, nullptr, nullptr),
              cudaErrorInvalidValue);
    EXPECT_EQ(LinearOf(kind)({.out = 16, .in = 1 << 20}, 1, nullptr, nullptr, nullptr),
              cudaErrorInvalidValue);
  }
}

}  // namespace
}  // namespace hearth::worker
