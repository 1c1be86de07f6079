// The runtime's errors as statuses: "op: text (name)". Out of memory is ResourceExhausted,
// everything else Internal.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "absl/status/status.h"

namespace hearth::worker {

absl::Status CudaStatus(cudaError_t error, std::string_view op);

}  // namespace hearth::worker
