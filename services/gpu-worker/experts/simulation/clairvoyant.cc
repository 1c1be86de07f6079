#include "services/gpu-worker/experts/simulation/clairvoyant.h"

#include <limits>
#include <set>
#include <utility>
#include <vector>

namespace hearth::worker {
namespace {

constexpr size_t kNever = std::numeric_limits<size_t>::max();

// For each step and use: the next decode step with that expert.
std::vector<std::vector<size_t>> NextUses(const CacheShape& shape,
                                          std::span<const ReplayStep> steps) {
  std::vector<size_t> next(static_cast<size_t>(shape.n_keys()), kNever);
  std::vector<std::vector<size_t>> uses(steps.size());
  for (size_t t = steps.size(); t-- > 0;) {
    for (const ExpertUse& use : steps[t].uses) {
      size_t& known = next[static_cast<size_t>(shape.Key(use.layer, use.expert))];
      uses[t].push_back(known);
      if (!steps[t].is_prompt) known = t;
    }
  }
  return uses;
}

}  // namespace

ClairvoyantResult Clairvoyant(const CacheShape& shape, std::span<const ReplayStep> steps,
                              size_t first_counted) {
  const auto next_uses = NextUses(shape, steps);
  const auto n_slots = static_cast<size_t>(shape.n_slots);
  std::set<std::pair<size_t, int32_t>> held;  // next use, key
  ClairvoyantResult result;
  for (size_t t = 0; t < steps.size(); ++t) {
    const ReplayStep& step = steps[t];
    std::set<int32_t> entered;  // not resident in this step
    for (size_t i = 0; i < step.uses.size(); ++i) {
      const int32_t key = shape.Key(step.uses[i].layer, step.uses[i].expert);
      const size_t next = next_uses[t][i];
      // A prompt's use leaves an interval that ends at the next decode step as it was.
      const bool is_hit = held.erase({step.is_prompt ? next : t, key}) > 0;
      if (!step.is_prompt && t >= first_counted) ++(is_hit ? result.hits : result.misses);
      if (next == kNever || next < first_counted) continue;  // worth nothing
      held.insert({next, key});
      if (!is_hit) entered.insert(key);
    }
    while (held.size() > n_slots) {
      const auto last = std::prev(held.end());
      entered.erase(last->second);
      held.erase(last);
    }
    if (t >= first_counted) result.admissions += entered.size();
  }
  return result;
}

}  // namespace hearth::worker
