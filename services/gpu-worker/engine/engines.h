// What Engine::Create chooses from.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

// As Engine::Create, with options that were checked.
absl::StatusOr<std::unique_ptr<Engine>> CreateCpuEngine(const Checkpoint& checkpoint,
                                                        ExpertSource* experts,
                                                        const EngineOptions& options);
// Where this build has CUDA.
absl::StatusOr<std::unique_ptr<Engine>> CreateCudaEngine(const Checkpoint& checkpoint,
                                                         ExpertSource* experts,
                                                         const EngineOptions& options);
int CountCudaDevices();  // 0 without a driver

}  // namespace hearth::worker
