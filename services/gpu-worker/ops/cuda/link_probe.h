// What `hearth doctor` times on a GPU: a kernel that reads memory, the device's or registered
// memory of the host over PCIe, and one that asks a CPU thread and waits for its answer.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hearth::worker {

// XORs all 32-bit words of `memory` [bytes] into *sum (device). `memory`: as the device sees it,
// 16-byte aligned; bytes % 16 == 0. Reads each byte once, 16 at a time, eight such loads in flight
// a thread; all multiprocessors take part.
cudaError_t ReadMemoryCuda(const void* memory, int64_t bytes, uint32_t* sum, cudaStream_t stream);

// In pinned memory; the two flags in cache lines of their own.
struct PingFlags {
  alignas(128) uint32_t asked = 0;     // the GPU's: 1, 2, ...
  uint32_t gave_up = 0;                // the GPU's: an answer took longer than it waits
  alignas(128) uint32_t answered = 0;  // the CPU's: the last question that it has seen
};

// Asks `n` times, each time once the question before was answered: one thread. Flags begin as
// zeros.
cudaError_t PingCuda(PingFlags* flags, uint32_t n, uint64_t wait_nanoseconds, cudaStream_t stream);

}  // namespace hearth::worker
