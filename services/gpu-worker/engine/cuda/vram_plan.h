// How the card's memory is divided, before any of it is taken. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hearth::worker {

struct VramPart {
  std::string name;
  uint64_t bytes = 0;
};

struct VramNeeds {
  std::vector<VramPart> fixed;  // all but the experts
  uint64_t slot_bytes = 0;      // of one expert; 0: none can be cached
  int64_t all_experts = 0;
  int64_t wanted_slots = -1;  // -1: as many as fit
};

struct VramPlan {
  std::vector<VramPart> parts;  // `fixed`, the expert cache, and what is left
  int64_t n_slots = 0;
  std::string ToText() const;  // a table
};

// Left to others where no budget is given.
inline constexpr uint64_t kVramReserve = uint64_t{1} << 30;

// Divides `budget`, of which `free` bytes can be had; budget 0: what is free less the reserve.
// ResourceExhausted, with the table and what to change, if the fixed parts or the wanted slots
// don't fit.
absl::StatusOr<VramPlan> PlanVram(const VramNeeds& needs, uint64_t budget, uint64_t free);

}  // namespace hearth::worker
