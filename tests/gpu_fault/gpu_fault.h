// For tests only: breaks this process's CUDA context as a kernel's bug or a failing card does. No
// program of the product links this.
#pragma once

#include <cuda_runtime_api.h>

namespace hearth::testing {

enum class GpuFault {
  kTrap,            // a kernel ends itself
  kIllegalAddress,  // a kernel writes where there is no memory
};

// Loads the kernel, for which the device has to be idle: first.
cudaError_t PrepareGpuFault();

// Starts such a kernel on a stream of its own, beside whatever runs. From then on, or soon, every
// call of CUDA in this process fails: the error stays.
cudaError_t BreakGpu(GpuFault fault);

}  // namespace hearth::testing
