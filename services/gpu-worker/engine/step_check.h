// What engines share: what they ask of a step before it changes anything, and how states are read.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

absl::Status CheckTokenId(const ModelConfig& config, int32_t id);

// InvalidArgument for an item without sequence or tokens, a sequence that stands twice, ids outside
// the vocabulary, drafts that the engine
// cannot take back, more than `max_tokens` in all; ResourceExhausted without the KV pages.
absl::Status CheckStep(const Engine& engine, std::span<const StepItem> items, int64_t max_tokens);

// InvalidArgument for a depth that `engine` doesn't reach, more than `max_items` items, one without
// sequence or one that stands twice, ids outside the vocabulary, a sequence that has seen nothing
// or, for deeper drafts, not made as many guesses (`n_guessed`) since its last step;
// ResourceExhausted without the KV pages.
absl::Status CheckDraft(const Engine& engine, std::span<const DraftItem> items, int depth,
                        int64_t max_items,
                        const std::function<int(const SequenceState&)>& n_guessed);

// Place of a delta-net layer among the delta-net layers. InvalidArgument for another layer.
absl::StatusOr<int> DeltaLayerIndex(const ModelConfig& config, int layer);

// A convolution's history [W - 1, channels], oldest first, as Engine::ReadDeltaState gives it:
// [channels, W - 1].
std::vector<float> NewestLast(std::span<const float> history, int64_t channels);

}  // namespace hearth::worker
