// How the kernels of a step are launched: each may begin before the one in front of it has ended
// (programmatic dependent launch), so that its start and its first weights hide behind that one's
// end. In a captured graph the same becomes programmatic edges. Only for .cu files.
//
// The rule that makes it safe, for every kernel launched by Launch():
//   - every thread calls JoinChain() before it reads or writes anything that an earlier kernel
//     writes or reads, and before it leaves. Only what never changes while the stream runs
//     (weights, tables of the model) may be read before.
//   - JoinChain() waits until all earlier kernels are complete and their writes are visible, and
//     only then lets the next kernel begin. So a kernel that has begun may also rely on all that
//     the kernel before its predecessor wrote, if it reads past the L1 (__ldcg).
//   - pointers to what earlier kernels read or write are not `__restrict__`: the compiler may move
//     what goes through those across the wait.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "services/gpu-worker/ops/cuda/chained_launches.h"

namespace hearth::worker {

__device__ inline void JoinChain() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether this device runs code of this file that was compiled with the instructions of
// JoinChain(): it takes the newest it can.
inline bool DeviceCanChain() {
#ifdef __CUDA_ARCH_LIST__
  constexpr int kCompiled[] = {__CUDA_ARCH_LIST__};
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return false;
  }
  for (const int compiled : kCompiled) {
    if (compiled >= 900 && compiled <= major * 100 + minor * 10) return true;
  }
#endif
  return false;
}

struct LaunchShape {
  dim3 grid = {};
  unsigned threads = 0;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

template <typename... Params>
cudaError_t Launch(void (*kernel)(Params...), const LaunchShape& shape,
                   const std::type_identity_t<Params>&... params) {
  // 48 KiB need no asking, but what a kernel declares counts too.
  constexpr size_t kWithoutAsking = 16 << 10;
  if (shape.shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute chained = {};
  chained.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  chained.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  config.attrs = &chained;
  config.numAttrs = ChainedLaunches() && DeviceCanChain() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params...);
}

}  // namespace hearth::worker
