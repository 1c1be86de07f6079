#include <cstdint>

#include "tests/gpu_fault/gpu_fault.h"

namespace hearth::testing {
namespace {

__global__ void FaultKernel(GpuFault fault, uint32_t* nowhere) {
  if (fault == GpuFault::kTrap) __trap();
  *nowhere = 1;
}

cudaStream_t stream = nullptr;  // never destroyed: nothing works afterwards

}  // namespace

cudaError_t PrepareGpuFault() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, FaultKernel);
  if (error != cudaSuccess) return error;
  return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
}

cudaError_t BreakGpu(GpuFault fault) {
  // Above every address that the driver gives out.
  FaultKernel<<<1, 1, 0, stream>>>(fault, reinterpret_cast<uint32_t*>(uintptr_t{1} << 60));
  return cudaGetLastError();
}

}  // namespace hearth::testing
