// What experts look like as bytes that the kernels read.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/base/status_macros.h"
#include "common/experts/layout.h"
#include "common/experts/packing.h"
#include "services/gpu-worker/engine/cuda/device_weights.h"
#include "services/gpu-worker/engine/expert_sources.h"

namespace hearth::worker {
namespace {

SlotMatrix PartsOf(const PackedLinear& linear, uint64_t header) {
  return {.data = static_cast<int64_t>(linear.data_offset),
          .scales = static_cast<int64_t>(linear.absmax_offset),
          .factor = static_cast<int64_t>(header + offsetof(PackedLinear, factor))};
}

bool CanRead(const PackedLinear& linear) {
  return linear.kind == static_cast<uint32_t>(WeightKind::kTiled4) && linear.out % 64 == 0 &&
         linear.in % 64 == 0;
}

}  // namespace

absl::StatusOr<SlotLayout> FindSlotLayout(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  SlotLayout layout;
  const auto with_experts = std::ranges::find(config.layers, true, &LayerConfig::has_experts);
  if (with_experts == config.layers.end()) return layout;
  CheckpointExperts source(&checkpoint);
  HEARTH_ASSIGN_OR_RETURN(const ExpertRef expert,
                          source.Get(static_cast<int>(with_experts - config.layers.begin()), 0));
  HEARTH_ASSIGN_OR_RETURN(layout.bytes, PackedExpertBytes(expert, kTiledExperts));
  layout.stride = (layout.bytes + kExpertAlignment - 1) / kExpertAlignment * kExpertAlignment;
  std::vector<std::byte> bytes(layout.bytes);
  HEARTH_RETURN_IF_ERROR(PackExpert(expert, kTiledExperts, bytes));
  PackedExpert packed;
  std::memcpy(&packed, bytes.data(), sizeof(packed));
  layout.can_cache = CanRead(packed.gate) && CanRead(packed.up) && CanRead(packed.down) &&
                     std::ranges::equal(packed.gate.levels, packed.up.levels) &&
                     std::ranges::equal(packed.gate.levels, packed.down.levels);
  layout.shape.width = static_cast<int>(packed.gate.in);
  layout.shape.inner = static_cast<int>(packed.gate.out);
  layout.shape.top_k = config.experts_per_token;
  layout.shape.gate = PartsOf(packed.gate, offsetof(PackedExpert, gate));
  layout.shape.up = PartsOf(packed.up, offsetof(PackedExpert, up));
  layout.shape.down = PartsOf(packed.down, offsetof(PackedExpert, down));
  std::ranges::copy(packed.gate.levels, layout.shape.levels.values);
  return layout;
}

bool FitsSlot(const SlotLayout& layout, std::span<const std::byte> packed) {
  if (!layout.can_cache || packed.size() != layout.bytes) return false;
  PackedExpert expert;
  std::memcpy(&expert, packed.data(), sizeof(expert));
  const auto is_there = [&](const PackedLinear& linear, const SlotMatrix& parts) {
    return CanRead(linear) && static_cast<int64_t>(linear.data_offset) == parts.data &&
           static_cast<int64_t>(linear.absmax_offset) == parts.scales &&
           std::ranges::equal(linear.levels, layout.shape.levels.values);
  };
  return is_there(expert.gate, layout.shape.gate) && is_there(expert.up, layout.shape.up) &&
         is_there(expert.down, layout.shape.down);
}

}  // namespace hearth::worker
