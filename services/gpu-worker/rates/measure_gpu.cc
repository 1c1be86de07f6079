#include "services/gpu-worker/rates/measure_gpu.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/machine/ram_readers.h"
#include "services/gpu-worker/rates/gpu_probe.h"

namespace hearth::worker {
namespace {

// The link alone, and while threads read memory. The one that feeds the GPU is not among them.
absl::StatusOr<LinkRates> MeasureLink(GpuProbe& probe, const GpuMeasure& measure,
                                      cudaError_t (GpuProbe::*way)()) {
  const auto rate = [&]() -> absl::StatusOr<double> {
    HEARTH_ASSIGN_OR_RETURN(const double seconds, probe.Seconds([&] { return (probe.*way)(); },
                                                                measure.time, measure.repetitions));
    return static_cast<double>(probe.host_bytes()) / seconds;
  };
  LinkRates rates;
  HEARTH_ASSIGN_OR_RETURN(rates.alone, rate());
  HEARTH_ASSIGN_OR_RETURN(const auto readers, RamReaders::Start(std::max(1, measure.n_threads - 1),
                                                                2 * measure.host_bytes));
  readers->TakeRate();
  HEARTH_ASSIGN_OR_RETURN(rates.loaded, rate());
  rates.ram_meanwhile = readers->TakeRate();
  return rates;
}

}  // namespace

absl::StatusOr<GpuRates> MeasureGpu(const GpuMeasure& measure) {
  int n_devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&n_devices);
  if (found != cudaSuccess || n_devices == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no GPU that CUDA can use: ", cudaGetErrorString(found)));
  }
  HEARTH_ASSIGN_OR_RETURN(const auto probe,
                          GpuProbe::Create(measure.host_bytes, measure.device_bytes));
  GpuRates rates;
  HEARTH_ASSIGN_OR_RETURN(rates.handshake_seconds, probe->HandshakeSeconds(measure.questions));
  HEARTH_ASSIGN_OR_RETURN(rates.copy, MeasureLink(*probe, measure, &GpuProbe::Copy));
  if (probe->is_registered()) {
    HEARTH_ASSIGN_OR_RETURN(rates.zero_copy, MeasureLink(*probe, measure, &GpuProbe::ZeroCopy));
  }
  HEARTH_ASSIGN_OR_RETURN(const double seconds, probe->Seconds([&] { return probe->ReadDevice(); },
                                                               measure.time, measure.repetitions));
  rates.memory_bytes_per_second = static_cast<double>(probe->device_bytes()) / seconds;
  return rates;
}

}  // namespace hearth::worker
