#include "services/gpu-worker/ops/cuda/cuda_testing.h"

#include <cstdlib>
#include <random>
#include <string_view>

namespace hearth::worker {

void CudaTest::SetUp() {
  int n_devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&n_devices);
  if (error == cudaSuccess && n_devices > 0) return;
  const char* required = std::getenv("HEARTH_REQUIRE_GPU");
  if (required != nullptr && std::string_view(required) == "1") {
    FAIL() << "HEARTH_REQUIRE_GPU is set, and there is no device: " << cudaGetErrorString(error);
  }
  GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(error);
}

std::vector<float> RandomFloats(int64_t n, uint32_t seed, float size) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, size);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace hearth::worker
