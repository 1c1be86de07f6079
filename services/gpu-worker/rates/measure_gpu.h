// Measures how fast this machine's GPU gets at bytes and at a CPU thread's ear, for `hearth
// doctor`.
#pragma once

#include <chrono>
#include <cstdint>

#include "absl/status/statusor.h"
#include "common/machine/machine_rates.h"

namespace hearth::worker {

struct GpuMeasure {
  int n_threads = 1;                   // that compute experts beside the GPU, the caller's included
  std::chrono::milliseconds time{30};  // of each repetition
  int repetitions = 3;                 // of which the median counts
  uint64_t host_bytes = uint64_t{256} << 20;    // registered, and half of what the threads read
  uint64_t device_bytes = uint64_t{512} << 20;  // at most a quarter of what is free
  int questions = 2000;                         // of the handshake
};

// With CUDA's start some two seconds. FailedPrecondition in a build without CUDA or on a machine
// without a GPU, in one line; ResourceExhausted where others have its memory.
absl::StatusOr<GpuRates> MeasureGpu(const GpuMeasure& measure);

}  // namespace hearth::worker
