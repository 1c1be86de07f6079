#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/engines.h"

namespace hearth::worker {

bool HasCudaBackend() {
#ifdef HEARTH_CUDA
  return true;
#else
  return false;
#endif
}

bool HasCudaDevice() {
#ifdef HEARTH_CUDA
  return CountCudaDevices() > 0;
#else
  return false;
#endif
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const Checkpoint& checkpoint,
                                                       ExpertSource* experts,
                                                       const EngineOptions& options) {
  HEARTH_CHECK(experts != nullptr);
  if (options.n_threads < 1 || options.page_tokens < 1 || options.max_batch_tokens < 1 ||
      options.max_sequences < 1 || options.kv_tokens < options.page_tokens ||
      options.max_drafts < 0 || options.max_drafts > kMaxDrafts) {
    return absl::InvalidArgumentError(absl::StrCat(
        "engine options: threads ", options.n_threads, ", page tokens ", options.page_tokens,
        ", batch tokens ", options.max_batch_tokens, ", sequences ", options.max_sequences,
        " must be at least 1, kv tokens ", options.kv_tokens, " at least a page, and drafts ",
        options.max_drafts, " at most ", kMaxDrafts));
  }
  if (options.backend == BackendKind::kCpu) return CreateCpuEngine(checkpoint, experts, options);
#ifdef HEARTH_CUDA
  return CreateCudaEngine(checkpoint, experts, options);
#else
  return absl::FailedPreconditionError(
      "this build has no CUDA backend: build with nvcc on the PATH (preset cuda), or choose the "
      "CPU "
      "backend");
#endif
}

}  // namespace hearth::worker
