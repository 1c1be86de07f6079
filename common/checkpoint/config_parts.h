// The parts of ParseModelConfig that lie in files of their own. Nothing else uses them.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/config.h"
#include "common/checkpoint/json_fields.h"

namespace hearth {

// Rotary settings of either style; needs head_dim and max_position_embeddings in `model`.
absl::StatusOr<RopeConfig> ReadRope(const JsonFields& fields, const ModelConfig& model);

// End and begin tokens and sampling defaults; fields present here replace what `model` has.
absl::Status ReadGeneration(const JsonFields& fields, ModelConfig& model);

}  // namespace hearth
