// What is timed by measure_gpu.cc: memory on both sides of the link, and a stream with its clock.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "common/base/page_buffer.h"
#include "services/gpu-worker/ops/cuda/device.h"

namespace hearth::worker {

class GpuProbe {
 public:
  // ResourceExhausted without the memory; Internal where the device fails.
  static absl::StatusOr<std::unique_ptr<GpuProbe>> Create(uint64_t host_bytes,
                                                          uint64_t device_bytes);
  ~GpuProbe();

  // Enqueue reading all of the host's memory, or of the device's, once.
  cudaError_t Copy();      // into the device's, in pieces of an expert
  cudaError_t ZeroCopy();  // by a kernel; only if is_registered()
  cudaError_t ReadDevice();
  int64_t host_bytes() const { return static_cast<int64_t>(host_.bytes()); }
  int64_t device_bytes() const { return device_.bytes(); }
  // As the worker registers experts; false where the driver can't.
  bool is_registered() const { return is_registered_; }

  // Median seconds of one `enqueue`, done as often as `time` takes, `repetitions` times.
  absl::StatusOr<double> Seconds(const std::function<cudaError_t()>& enqueue,
                                 std::chrono::milliseconds time, int repetitions);
  // Median seconds from the CPU's sight of a question to that of the next.
  absl::StatusOr<double> HandshakeSeconds(int questions);

 private:
  GpuProbe() = default;
  // Seconds of `n` of them, by the device's clock.
  absl::StatusOr<double> Time(const std::function<cudaError_t()>& enqueue, int n);

  PageBuffer host_;
  bool is_registered_ = false;
  DeviceBuffer<std::byte> device_;
  DeviceBuffer<uint32_t> sum_;
  Stream stream_;
  Event begin_, end_;
};

}  // namespace hearth::worker
