// Copies to shared memory that nobody waits for yet. Only for .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hearth::worker {

__device__ inline void CopyAsync16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}

}  // namespace hearth::worker
