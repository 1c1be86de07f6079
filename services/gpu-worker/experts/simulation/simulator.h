// Replays a trace through the product's expert cache and counts. The link's and the machine's speed
// are not modelled: a copy that is planned after a step has ended before the next.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/gpu-worker/experts/simulation/replay.h"

namespace hearth::worker {

// Tokens at the start of an answer that are reported apart: what a prompt's counts are for.
inline constexpr int kEarlyTokens = 32;

struct SimulationOptions {
  std::string policy;  // one of PolicyNames(), or "optimum": Clairvoyant
  int n_slots = 0;
  int at_most = 0;  // admissions after a decode step; after a prompt as many as there are slots
  size_t first_counted = 0;  // step; the ones before fill the cache
  PolicyOptions policy_options = {};
};

struct SimulationResult {
  std::string policy;
  int n_slots = 0;
  uint64_t steps = 0, tokens = 0;  // decoded, of those that count, as all below
  uint64_t hits = 0, misses = 0;
  uint64_t early_hits = 0, early_misses = 0;  // of the answers' first kEarlyTokens
  uint64_t admissions = 0;                    // after decode steps
  uint64_t prompt_admissions = 0;
  double seconds = 0;  // of the cache's bookkeeping in those decode steps

  double HitRate() const;
  double EarlyHitRate() const;
  double PerToken(uint64_t n) const;
};

// As MakePolicy.
absl::StatusOr<SimulationResult> Simulate(const CacheShape& shape,
                                          std::span<const ReplayStep> steps,
                                          const SimulationOptions& options);

// The step at which `share` of the decode steps are over.
size_t StepAfterShare(std::span<const ReplayStep> steps, double share);
// Of the uses in decode steps that could be predicted a layer early: the share that was. Nothing
// where the trace has no predictions.
std::optional<double> EarlyRecall(const CacheShape& shape, std::span<const ReplayStep> steps);
// Rows of all experts in these steps.
std::vector<ExpertUses> CountUses(const CacheShape& shape, std::span<const ReplayStep> steps);

}  // namespace hearth::worker
