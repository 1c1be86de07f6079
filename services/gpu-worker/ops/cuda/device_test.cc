#include "services/gpu-worker/ops/cuda/device.h"

#include <string>
#include <utility>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_status.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"

namespace hearth::worker {
namespace {

using DeviceTest = CudaTest;

TEST_F(DeviceTest, WhatIsCopiedThereComesBack) {
  const std::vector<float> values = RandomFloats(1000, 1);
  DeviceBuffer<float> buffer = ToDevice(values);
  EXPECT_EQ(buffer.bytes(), 4000);
  DeviceBuffer<float> moved = std::move(buffer);
  EXPECT_EQ(ToHost(moved), values);
}

TEST_F(DeviceTest, MemoryThatCannotBeHadIsAnErrorAndLeavesNothing) {
  DeviceBuffer<float> buffer = Poisoned<float>(16);
  EXPECT_NE(buffer.Allocate(int64_t{1} << 50), cudaSuccess);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(buffer.size(), 0);
  cudaGetLastError();  // an allocation's failure is not sticky
  HEARTH_EXPECT_CUDA(cudaDeviceSynchronize());
}

TEST_F(DeviceTest, EventsMeasureAStream) {
  Stream stream;
  Event begin, end;
  HEARTH_EXPECT_CUDA(stream.Create());
  HEARTH_EXPECT_CUDA(begin.Create());
  HEARTH_EXPECT_CUDA(end.Create());
  HEARTH_EXPECT_CUDA(cudaEventRecord(begin.get(), stream.get()));
  HEARTH_EXPECT_CUDA(cudaEventRecord(end.get(), stream.get()));
  HEARTH_EXPECT_CUDA(cudaEventSynchronize(end.get()));
  float milliseconds = -1;
  HEARTH_EXPECT_CUDA(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
  EXPECT_GE(milliseconds, 0);
}

TEST(CudaStatusTest, NamesTheOpAndTheError) {
  EXPECT_TRUE(CudaStatus(cudaSuccess, "copy").ok());
  const absl::Status launch = CudaStatus(cudaErrorInvalidConfiguration, "linear");
  EXPECT_EQ(launch.code(), absl::StatusCode::kInternal);
  EXPECT_NE(launch.ToString().find("linear: "), std::string::npos) << launch;
  EXPECT_EQ(CudaStatus(cudaErrorMemoryAllocation, "x").code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace hearth::worker
