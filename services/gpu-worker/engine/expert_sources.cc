#include "services/gpu-worker/engine/expert_sources.h"

#include <string>

#include "common/base/status_macros.h"
#include "common/checkpoint/expert_layers.h"

namespace hearth::worker {

absl::StatusOr<ExpertRef> CheckpointExperts::Get(int layer, int expert) {
  const std::lock_guard lock(mutex_);
  const std::pair key(layer, expert);
  auto found = owned_.find(key);
  if (found == owned_.end()) {
    const std::string prefix = ExpertModule(checkpoint_.config(), layer, expert) + ".";
    Owned owned;
    HEARTH_ASSIGN_OR_RETURN(owned.gate, checkpoint_.Linear(prefix + "gate_proj"));
    HEARTH_ASSIGN_OR_RETURN(owned.up, checkpoint_.Linear(prefix + "up_proj"));
    HEARTH_ASSIGN_OR_RETURN(owned.down, checkpoint_.Linear(prefix + "down_proj"));
    found = owned_.emplace(key, std::move(owned)).first;
  }
  return ExpertRef{found->second.gate.ref, found->second.up.ref, found->second.down.ref};
}

}  // namespace hearth::worker
