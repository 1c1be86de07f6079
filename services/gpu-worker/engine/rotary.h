// Rotary frequencies of a config, with YaRN where it asks for it (Peng et al., "YaRN", 2023).
#pragma once

#include "common/checkpoint/config.h"
#include "services/gpu-worker/ops/ops.h"

namespace hearth::worker {

RotaryTable MakeRotaryTable(const RopeConfig& rope);

}  // namespace hearth::worker
