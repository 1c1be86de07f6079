// What the tests of the CUDA kernels share: a fixture that skips where there is no device (or
// fails, with HEARTH_REQUIRE_GPU=1), device copies of vectors, and seeded random numbers.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "services/gpu-worker/ops/cuda/device.h"

namespace hearth::worker {

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override;
};

#define HEARTH_EXPECT_CUDA(expression)                                                  \
  do {                                                                                  \
    const cudaError_t hearth_cuda_error = (expression);                                 \
    EXPECT_EQ(hearth_cuda_error, cudaSuccess) << cudaGetErrorString(hearth_cuda_error); \
  } while (false)

template <typename T>
DeviceBuffer<T> ToDevice(const std::vector<T>& values) {
  DeviceBuffer<T> buffer;
  HEARTH_EXPECT_CUDA(buffer.Allocate(static_cast<int64_t>(values.size())));
  HEARTH_EXPECT_CUDA(buffer.CopyFrom(values.data(), buffer.size()));
  return buffer;
}

template <typename T>
std::vector<T> ToHost(const DeviceBuffer<T>& buffer) {
  std::vector<T> values(static_cast<size_t>(buffer.size()));
  HEARTH_EXPECT_CUDA(cudaDeviceSynchronize());
  HEARTH_EXPECT_CUDA(buffer.CopyTo(values.data(), buffer.size()));
  return values;
}

// All bits set: NaN as float and as bf16, so that an output that nothing wrote is seen.
template <typename T>
DeviceBuffer<T> Poisoned(int64_t size) {
  DeviceBuffer<T> buffer;
  HEARTH_EXPECT_CUDA(buffer.Allocate(size));
  HEARTH_EXPECT_CUDA(cudaMemset(buffer.data(), 0xff, static_cast<size_t>(buffer.bytes())));
  return buffer;
}

// Whether `value` is Poisoned's: a NaN that no arithmetic of the device gives.
inline bool IsPoison(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits == ~uint32_t{0};
}

std::vector<float> RandomFloats(int64_t n, uint32_t seed, float size = 1);

}  // namespace hearth::worker
