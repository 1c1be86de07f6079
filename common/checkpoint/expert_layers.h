// Which layers have routed experts, and what those are called in the checkpoint. One numbering for
// store, segment and engine: layers 0 to n_layers - 1 are the model's; where the checkpoint has a
// multi-token prediction head, its one layer follows at n_layers.
#pragma once

#include <string>

#include "common/checkpoint/checkpoint.h"

namespace hearth {

// n_layers, or one more where there is a multi-token prediction head.
int ExpertLayers(const Checkpoint& checkpoint);
bool LayerHasExperts(const Checkpoint& checkpoint, int layer);
// "model.layers.3.mlp.experts.7", "mtp.layers.0.mlp.experts.7"; its matrices are ".gate_proj" and
// so on.
std::string ExpertModule(const ModelConfig& config, int layer, int expert);

}  // namespace hearth
