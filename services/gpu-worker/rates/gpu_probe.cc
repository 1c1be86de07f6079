#include "services/gpu-worker/rates/gpu_probe.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "common/base/status_macros.h"
#include "common/machine/statistics.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"
#include "services/gpu-worker/ops/cuda/link_probe.h"

namespace hearth::worker {
namespace {

using Clock = std::chrono::steady_clock;

// Of the 80B model's experts, in tiles.
constexpr int64_t kExpertBytes = 1'671'168;
constexpr std::chrono::milliseconds kAnswerWait{500};

struct FreeHost {
  void operator()(PingFlags* flags) const { cudaFreeHost(flags); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<GpuProbe>> GpuProbe::Create(uint64_t host_bytes,
                                                           uint64_t device_bytes) {
  auto probe = std::unique_ptr<GpuProbe>(new GpuProbe());
  size_t free = 0, total = 0;
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free, &total), "starting CUDA"));
  device_bytes = std::min<uint64_t>(device_bytes, free / 4) / 16 * 16;
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(probe->device_.Allocate(static_cast<int64_t>(device_bytes)), "memory to read"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(probe->sum_.Allocate(1), "memory to read"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(probe->stream_.Create(), "a stream"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(probe->begin_.Create(), "an event"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(probe->end_.Create(), "an event"));
  HEARTH_ASSIGN_OR_RETURN(probe->host_,
                          PageBuffer::Allocate(std::min(host_bytes, device_bytes) / 16 * 16));
  probe->is_registered_ =
      cudaHostRegister(probe->host_.data(), probe->host_.bytes(),
                       cudaHostRegisterReadOnly | cudaHostRegisterPortable) == cudaSuccess;
  cudaGetLastError();  // forgotten: copies work without
  return probe;
}

GpuProbe::~GpuProbe() {
  if (stream_.get() != nullptr) cudaStreamSynchronize(stream_.get());
  if (is_registered_) cudaHostUnregister(host_.data());
}

cudaError_t GpuProbe::Copy() {
  cudaError_t error = cudaSuccess;
  for (int64_t at = 0; at < host_bytes() && error == cudaSuccess; at += kExpertBytes) {
    const int64_t n = std::min(kExpertBytes, host_bytes() - at);
    error = cudaMemcpyAsync(device_.data() + at, host_.data() + at, static_cast<size_t>(n),
                            cudaMemcpyHostToDevice, stream_.get());
  }
  return error;
}

cudaError_t GpuProbe::ZeroCopy() {
  void* seen = nullptr;
  const cudaError_t error = cudaHostGetDevicePointer(&seen, host_.data(), 0);
  if (error != cudaSuccess) return error;
  return ReadMemoryCuda(seen, host_bytes(), sum_.data(), stream_.get());
}

cudaError_t GpuProbe::ReadDevice() {
  return ReadMemoryCuda(device_.data(), device_bytes(), sum_.data(), stream_.get());
}

absl::StatusOr<double> GpuProbe::Time(const std::function<cudaError_t()>& enqueue, int n) {
  cudaError_t error = cudaEventRecord(begin_.get(), stream_.get());
  for (int i = 0; i < n && error == cudaSuccess; ++i) error = enqueue();
  if (error == cudaSuccess) error = cudaEventRecord(end_.get(), stream_.get());
  if (error == cudaSuccess) error = cudaEventSynchronize(end_.get());
  float milliseconds = 0;
  if (error == cudaSuccess) {
    error = cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get());
  }
  HEARTH_RETURN_IF_ERROR(CudaStatus(error, "measuring the GPU"));
  return std::max(1e-9, static_cast<double>(milliseconds) / 1e3);
}

absl::StatusOr<double> GpuProbe::Seconds(const std::function<cudaError_t()>& enqueue,
                                         std::chrono::milliseconds time, int repetitions) {
  HEARTH_RETURN_IF_ERROR(Time(enqueue, 1).status());  // loads the code
  HEARTH_ASSIGN_OR_RETURN(const double once, Time(enqueue, 1));
  const int n =
      static_cast<int>(std::clamp(std::chrono::duration<double>(time).count() / once, 1.0, 1000.0));
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) {
    HEARTH_ASSIGN_OR_RETURN(const double all, Time(enqueue, n));
    seconds.push_back(all / n);
  }
  return Summarise(seconds).median;
}

absl::StatusOr<double> GpuProbe::HandshakeSeconds(int questions) {
  void* memory = nullptr;
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaHostAlloc(&memory, sizeof(PingFlags), cudaHostAllocDefault), "pinned memory"));
  const std::unique_ptr<PingFlags, FreeHost> flags(new (memory) PingFlags());
  std::atomic_ref asked(flags->asked), answered(flags->answered), gave_up(flags->gave_up);
  const auto n = static_cast<uint32_t>(questions);
  HEARTH_RETURN_IF_ERROR(CudaStatus(
      PingCuda(flags.get(), n, static_cast<uint64_t>(std::chrono::nanoseconds(kAnswerWait).count()),
               stream_.get()),
      "a handshake"));
  std::vector<double> seconds;
  auto last = Clock::now();
  for (uint32_t question = 1; question <= n && seconds.size() < n;) {
    const auto now = Clock::now();
    if (asked.load(std::memory_order_acquire) >= question) {
      answered.store(question++, std::memory_order_release);
      seconds.push_back(std::chrono::duration<double>(now - last).count());
      last = now;
    } else if (now - last > 2 * kAnswerWait || gave_up.load() != 0) {
      break;
    }
  }
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_.get()), "a handshake"));
  if (seconds.size() < n) return absl::DeadlineExceededError("the GPU and a CPU thread miss flags");
  return Summarise(std::span(seconds).subspan(1)).median;  // the first is the launch
}

}  // namespace hearth::worker
