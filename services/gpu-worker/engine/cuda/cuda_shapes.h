// What the CUDA engine makes for a model, and what that takes of the card, before any of it is
// taken. Needs no device.
#pragma once

#include "absl/status/status.h"
#include "services/gpu-worker/engine/cuda/cuda_backend.h"
#include "services/gpu-worker/engine/cuda/device_state.h"
#include "services/gpu-worker/engine/cuda/device_weights.h"
#include "services/gpu-worker/engine/cuda/vram_plan.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/weights.h"

namespace hearth::worker {

// What the CUDA context and the kernels' code take, outside our control.
inline constexpr uint64_t kContextBytes = uint64_t{640} << 20;

struct CudaShapes {
  DeviceStateShape state;
  CudaBackendShape backend;
};

// Whether the kernels were made for such a model: kUnimplemented names the field of config.json,
// what it may be, and the backend that takes it.
absl::Status CheckModel(const ModelConfig& config);

// `weights` have a multi-token prediction head where the engine is to make drafts.
CudaShapes ShapesOf(const ModelConfig& config, const ModelWeights& weights,
                    const SlotLayout& layout, const EngineOptions& options);

VramNeeds NeedsOf(const ModelConfig& config, const ModelWeights& weights, const SlotLayout& layout,
                  const CudaShapes& shapes, const EngineOptions& options);

}  // namespace hearth::worker
