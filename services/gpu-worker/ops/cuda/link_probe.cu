#include "services/gpu-worker/ops/cuda/host_flags.cuh"
#include "services/gpu-worker/ops/cuda/link_probe.h"

namespace hearth::worker {
namespace {

constexpr int kThreads = 512, kBlocksPerMultiprocessor = 2;
constexpr int kInFlight = 8;

__device__ uint32_t Xor(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

// A block takes kInFlight * kThreads vectors at a time, then those that are a grid further.
__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* __restrict__ memory, int64_t n, uint32_t* sum) {
  constexpr int64_t kTile = int64_t{kInFlight} * kThreads;
  uint32_t mine = 0;
  for (int64_t first = blockIdx.x * kTile; first < n; first += gridDim.x * kTile) {
    uint4 values[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t at = first + i * kThreads + threadIdx.x;
      values[i] = at < n ? __ldcs(memory + at) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) mine ^= Xor(values[i]);
  }
  mine = __reduce_xor_sync(0xffffffffu, mine);
  if (threadIdx.x % 32 == 0) atomicXor(sum, mine);
}

__global__ void PingKernel(PingFlags* flags, uint32_t n, uint64_t wait_nanoseconds) {
  for (uint32_t question = 1; question <= n; ++question) {
    const uint64_t start = Nanoseconds();
    StoreRelease(&flags->asked, question);
    while (LoadAcquire(&flags->answered) != question) {
      if (Nanoseconds() - start < wait_nanoseconds) continue;
      StoreRelease(&flags->gave_up, 1);
      return;
    }
  }
}

}  // namespace

cudaError_t ReadMemoryCuda(const void* memory, int64_t bytes, uint32_t* sum, cudaStream_t stream) {
  if (bytes < 0 || bytes % 16 != 0) return cudaErrorInvalidValue;
  if (bytes == 0) return cudaSuccess;
  int device = 0, n_multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&n_multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return error;
  const auto n_blocks = static_cast<unsigned>(n_multiprocessors * kBlocksPerMultiprocessor);
  ReadKernel<<<n_blocks, kThreads, 0, stream>>>(static_cast<const uint4*>(memory), bytes / 16, sum);
  return cudaGetLastError();
}

cudaError_t PingCuda(PingFlags* flags, uint32_t n, uint64_t wait_nanoseconds, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  PingKernel<<<1, 1, 0, stream>>>(flags, n, wait_nanoseconds);
  return cudaGetLastError();
}

}  // namespace hearth::worker
