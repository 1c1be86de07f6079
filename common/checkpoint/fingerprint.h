// The digest behind Checkpoint::ExpertFingerprint.
#pragma once

#include <string>

#include "common/checkpoint/config.h"
#include "common/checkpoint/tensor_folder.h"

namespace hearth {

std::string ComputeExpertFingerprint(const ModelConfig& config, const TensorFolder& folder);

}  // namespace hearth
