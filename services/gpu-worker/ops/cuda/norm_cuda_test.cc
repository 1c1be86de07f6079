#include "services/gpu-worker/ops/cuda/norm_cuda.h"

#include <cmath>
#include <vector>

#include "common/testing/compare.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/rounded_testing.h"
#include "services/gpu-worker/ops/exact_ops.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using Floats = std::vector<float>;

class NormCudaTest : public CudaTest {
 protected:
  Parallel parallel_{2};
  ExactOps exact_{&parallel_};
};

TEST_F(NormCudaTest, AddsAndNormsAsTheReferenceDoes) {
  uint32_t seed = 1;
  for (const int width : {4, 128, 256, 2048, 2052, 4096, 8192}) {
    for (const int n_rows : {1, 3, 8}) {
      for (const bool has_shared : {false, true}) {
        for (const bool has_delta : {false, true}) {
          const int64_t n = int64_t{n_rows} * width;
          Floats x = RandomFloats(n, seed++);
          const Floats delta = RandomFloats(n, seed++), shared = RandomFloats(n, seed++);
          const Floats gate = RandomFloats(n_rows, seed++), weight = RandomFloats(width, seed++);
          auto device_x = ToDevice(x);
          auto h = Poisoned<float>(n);
          const auto d = ToDevice(delta), s = ToDevice(shared), g = ToDevice(gate),
                     w = ToDevice(weight);
          ResidualTerms terms;
          if (has_delta) terms.delta = d.data();
          if (has_shared) terms.shared = s.data(), terms.gate = g.data();
          HEARTH_EXPECT_CUDA(AddRmsNormCuda(n_rows, width, device_x.data(), terms, w.data(), 1e-6f,
                                            h.data(), nullptr));
          Floats want(x.size());
          if (has_shared) {
            exact_.AddGated(n_rows, width, shared.data(), gate.data(), x.data());
          }
          exact_.AddRmsNorm(n_rows, width, x.data(), has_delta ? delta.data() : nullptr,
                            weight.data(), 1e-6f, want.data());
          EXPECT_TRUE(AllClose(ToHost(device_x), x, {.abs = 2e-6, .rel = 1e-6})) << width;
          EXPECT_TRUE(AllClose(ToHost(h), want, {.abs = 1e-5, .rel = 1e-5})) << width;
        }
      }
    }
  }
}

TEST_F(NormCudaTest, WithoutAnOutputOnlyAdds) {
  const Floats x = RandomFloats(2 * 64, 1), delta = RandomFloats(2 * 64, 2);
  auto device_x = ToDevice(x);
  const auto d = ToDevice(delta);
  HEARTH_EXPECT_CUDA(
      AddRmsNormCuda(2, 64, device_x.data(), {.delta = d.data()}, nullptr, 0, nullptr, nullptr));
  const Floats got = ToHost(device_x);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(got[i], x[i] + delta[i]) << i;
}

TEST_F(NormCudaTest, RoundedOutputsAreThoseThatTheLinearLayerWouldRound) {
  for (const int width : {64, 320, 2048, 4160, 8192}) {
    constexpr int kRows = 5;
    auto x = ToDevice(RandomFloats(kRows * width, 1));
    const auto weight = ToDevice(RandomFloats(width, 2));
    auto h = Poisoned<float>(kRows * width);
    RoundedBuffer rounded(kRows, width);
    HEARTH_EXPECT_CUDA(AddRmsNormCuda(kRows, width, x.data(), {}, weight.data(), 1e-6f, h.data(),
                                      rounded.rows(), nullptr));
    ExpectSameProducts(kRows, width, h.data(), rounded.rows());
  }
}

TEST_F(NormCudaTest, RefusesWidthsItCannotLoad) {
  EXPECT_EQ(AddRmsNormCuda(1, 6, nullptr, {}, nullptr, 0, nullptr, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(AddRmsNormCuda(1, 8196, nullptr, {}, nullptr, 0, nullptr, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(AddRmsNormCuda(0, 64, nullptr, {}, nullptr, 0, nullptr, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace hearth::worker
