// Flags in pinned memory that a kernel and a CPU thread set for each other, and the device's clock
// for giving up. Only for .cu files.
#pragma once

#include <cstdint>

namespace hearth::worker {

// What this thread wrote before is there for whoever sees `value`, on the host too.
__device__ inline void StoreRelease(uint32_t* at, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
__device__ inline uint32_t LoadAcquire(const uint32_t* at) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ inline uint64_t Nanoseconds() {
  uint64_t value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value));
  return value;
}

}  // namespace hearth::worker
