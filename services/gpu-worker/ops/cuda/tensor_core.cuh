// The instructions behind the prefill kernels, as functions: asynchronous copies to shared memory,
// matrix loads from it, and products of 16 x 16 by 16 x 8 pieces, as every card since sm_80 has
// them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hearth::worker {

__device__ inline uint32_t SharedAddress(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// 16 (or 8) bytes from device memory, zeros if not `is_there`; past the L1.
__device__ inline void CopyAsync16(uint32_t to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(is_there ? 16 : 0));
}
__device__ inline void CopyAsync8(uint32_t to, const void* from, bool is_there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from),
               "r"(is_there ? 8 : 0));
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;"); }
// Until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ inline void WaitForCopies() {
  static_assert(kPending >= 0);
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit values: lane l names row l % 8 of matrix l / 8 (16 bytes), and gets
// of each matrix values 2 (l % 4) and + 1 of row l / 4. Not said to read memory, so that other
// loads may pass them: what they read must have been written before the last barrier.
__device__ inline void LoadMatrices(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row));
}
__device__ inline void LoadMatricesTransposed(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row));
}

// c [16, 8] += a [16, 16] b [16, 8]. Lane l holds, with g = l / 4 and t = l % 4: of a the pairs of
// columns 2 t of rows g, g + 8 and, 8 columns on, of the same; of b the pairs of k 2 t and 8 + 2 t
// of column g; of c columns 2 t and 2 t + 1 of rows g and g + 8.
__device__ inline void MultiplyHalf(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void MultiplyBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace hearth::worker
