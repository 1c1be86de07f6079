// A synthetic model as a checkpoint that no file holds: every read makes its tensors anew, the same
// each time. So a segment is filled expert by expert, and no second copy of the experts exists.
#pragma once

#include <filesystem>
#include <memory>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/synthetic/model_spec.h"

namespace hearth {

// `n_threads` make the embedding and the head; other linears are made by the thread that asks.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSynthetic(const SyntheticSpec& spec, int n_threads);

// What --model means: a folder, or "synthetic:...".
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenModel(const std::filesystem::path& model,
                                                      int n_threads);

}  // namespace hearth
