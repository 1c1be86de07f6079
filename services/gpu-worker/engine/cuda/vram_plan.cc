#include "services/gpu-worker/engine/cuda/vram_plan.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace hearth::worker {
namespace {

std::string Table(const std::vector<VramPart>& parts) {
  std::string text;
  for (const VramPart& part : parts) {
    absl::StrAppendFormat(&text, "  %-32s %9.1f MiB\n", part.name,
                          static_cast<double>(part.bytes) / (1 << 20));
  }
  return text;
}

std::string Mib(uint64_t bytes) { return absl::StrCat(bytes >> 20, " MiB"); }

std::string Limit(uint64_t budget, uint64_t free) {
  if (budget == 0) {
    return absl::StrCat(Mib(free), " are free and ", Mib(kVramReserve), " of them left to others");
  }
  return free < budget ? absl::StrCat("only ", Mib(free), " are free")
                       : absl::StrCat("--vram allows ", Mib(budget));
}

}  // namespace

std::string VramPlan::ToText() const { return Table(parts); }

absl::StatusOr<VramPlan> PlanVram(const VramNeeds& needs, uint64_t budget, uint64_t free) {
  VramPlan plan;
  plan.parts = needs.fixed;
  const uint64_t fixed =
      std::accumulate(needs.fixed.begin(), needs.fixed.end(), uint64_t{0},
                      [](uint64_t sum, const VramPart& part) { return sum + part.bytes; });
  const uint64_t usable = budget != 0           ? std::min(budget, free)
                          : free > kVramReserve ? free - kVramReserve
                                                : 0;
  const auto refuse = [&](uint64_t need) {
    return absl::ResourceExhaustedError(
        // What to do comes last: the supervisor's last words are the last line.
        absl::StrCat(
            "VRAM doesn't suffice for\n", Table(plan.parts), "VRAM: ", Mib(need), " are needed, ",
            Limit(budget, free),
            ": give more with --vram, keep less with --expert-slots, --kv-tokens, "
            "--max-sequences or --max-batch-tokens, or free memory of the card (nvidia-smi "
            "shows who holds it)"));
  };
  if (fixed > usable) return refuse(fixed);
  const int64_t fit =
      needs.slot_bytes == 0 ? 0 : static_cast<int64_t>((usable - fixed) / needs.slot_bytes);
  plan.n_slots = std::min(fit, needs.all_experts);
  if (needs.slot_bytes != 0 && needs.wanted_slots >= 0) {
    const int64_t wanted = std::min(needs.wanted_slots, needs.all_experts);
    if (wanted > fit) {
      plan.parts.push_back({absl::StrCat("experts (", wanted, ")"),
                            static_cast<uint64_t>(wanted) * needs.slot_bytes});
      return refuse(fixed + static_cast<uint64_t>(wanted) * needs.slot_bytes);
    }
    plan.n_slots = wanted;
  }
  const uint64_t cache = static_cast<uint64_t>(plan.n_slots) * needs.slot_bytes;
  plan.parts.push_back(
      {absl::StrCat("experts (", plan.n_slots, " of ", needs.all_experts, ")"), cache});
  plan.parts.push_back({"not used", usable - fixed - cache});
  return plan;
}

}  // namespace hearth::worker
