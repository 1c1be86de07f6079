#include "services/gpu-worker/ops/cuda/cuda_status.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace hearth::worker {

absl::Status CudaStatus(cudaError_t error, std::string_view op) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat(std::string(op), ": ", cudaGetErrorString(error), " (",
                                        cudaGetErrorName(error), ")");
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

}  // namespace hearth::worker
