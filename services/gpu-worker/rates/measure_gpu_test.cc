#include "services/gpu-worker/rates/measure_gpu.h"

#include <chrono>

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"

namespace hearth::worker {
namespace {

using MeasureGpuTest = CudaTest;

// Whatever card and link: what is measured is there, within what such hardware does, and in order.
TEST_F(MeasureGpuTest, EveryRateIsPlausibleAndTheirTimeBounded) {
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_OK_AND_ASSIGN(const GpuRates rates, MeasureGpu({.n_threads = 4}));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(3));
  for (const LinkRates& link : {rates.copy, rates.zero_copy}) {
    for (const double rate : {link.alone, link.loaded, link.ram_meanwhile}) {
      EXPECT_GT(rate, 1e8);
      EXPECT_LT(rate, 2e12);
    }
    EXPECT_LT(link.loaded, 1.5 * link.alone);
    EXPECT_LT(link.alone, rates.memory_bytes_per_second);
  }
  EXPECT_GT(rates.memory_bytes_per_second, 5e10);
  EXPECT_LT(rates.memory_bytes_per_second, 2e13);
  EXPECT_GT(rates.handshake_seconds, 3e-7);
  EXPECT_LT(rates.handshake_seconds, 1e-4);
}

// Little to read, and more of it than fits what is asked of the device.
TEST_F(MeasureGpuTest, SmallBuffersWork) {
  ASSERT_OK_AND_ASSIGN(const GpuRates rates, MeasureGpu({.n_threads = 1,
                                                         .time = std::chrono::milliseconds(1),
                                                         .repetitions = 1,
                                                         .host_bytes = (3 << 20) + 7,
                                                         .device_bytes = (2 << 20) + 5,
                                                         .questions = 2}));
  EXPECT_GT(rates.copy.alone, 0);
  EXPECT_GT(rates.handshake_seconds, 0);
}

TEST(MeasureGpu, AMachineWithoutAGpuIsSaidInOneLine) {
  int n_devices = 0;
  if (cudaGetDeviceCount(&n_devices) == cudaSuccess && n_devices > 0) GTEST_SKIP() << "it has one";
  const absl::Status status = MeasureGpu({}).status();
  EXPECT_THAT(status, hearth::testing::IsStatus(absl::StatusCode::kFailedPrecondition,
                                                ::testing::HasSubstr("no GPU that CUDA can use")));
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
}

}  // namespace
}  // namespace hearth::worker
