// What every engine asks of a step before it changes anything.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

absl::Status CheckTokenId(const ModelConfig& config, int32_t id);

// InvalidArgument for an item without sequence or tokens, a sequence that stands twice, ids outside
// the vocabulary, drafts that the engine
// cannot take back, more than `max_tokens` in all; ResourceExhausted without the KV pages.
absl::Status CheckStep(const Engine& engine, std::span<const StepItem> items, int64_t max_tokens);

// Place of a delta-net layer among the delta-net layers. InvalidArgument for another layer.
absl::StatusOr<int> DeltaLayerIndex(const ModelConfig& config, int layer);

}  // namespace hearth::worker
