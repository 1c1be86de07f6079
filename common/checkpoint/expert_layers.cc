#include "common/checkpoint/expert_layers.h"

#include "absl/strings/str_cat.h"

namespace hearth {

int ExpertLayers(const Checkpoint& checkpoint) {
  return checkpoint.config().n_layers + (checkpoint.has_mtp() ? 1 : 0);
}

bool LayerHasExperts(const Checkpoint& checkpoint, int layer) {
  const ModelConfig& config = checkpoint.config();
  if (config.n_experts == 0 || layer < 0 || layer >= ExpertLayers(checkpoint)) return false;
  return layer == config.n_layers || config.layers[static_cast<size_t>(layer)].has_experts;
}

std::string ExpertModule(const ModelConfig& config, int layer, int expert) {
  if (layer == config.n_layers) return absl::StrCat("mtp.layers.0.mlp.experts.", expert);
  return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert);
}

}  // namespace hearth
