// For builds without CUDA.
#include "services/gpu-worker/rates/measure_gpu.h"

namespace hearth::worker {

absl::StatusOr<GpuRates> MeasureGpu(const GpuMeasure&) {
  return absl::FailedPreconditionError("built without CUDA");
}

}  // namespace hearth::worker
