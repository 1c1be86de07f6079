// The most hits that any demand cache can have on a known future.
//
// The rules are those of the product's cache: one pool of slots for all layers; what is resident
// changes between steps only; an expert enters after a step (or prompt) that used it, and need not
// enter. Without bounds on copies: whatever a step used may be kept. What a policy does beyond
// these rules can exceed this: loading a profile before the first step, admitting an expert later
// than after its use, or before it was ever used.
//
// Under the rules a hit is an interval: an expert stays from its last use to the next. The largest
// set of intervals that covers no moment more than n_slots times is found by dropping, whenever
// there are too many, the one that ends last: Belady's MIN, with the freedom not to admit.
#pragma once

#include <cstdint>
#include <span>

#include "services/gpu-worker/experts/simulation/replay.h"

namespace hearth::worker {

struct ClairvoyantResult {
  uint64_t hits = 0, misses = 0;  // of the decode steps that count
  uint64_t admissions = 0;        // all: of experts that were not resident
};

// Hits in decode steps from `first_counted` on are what is made as many as possible; the steps
// before serve to fill the cache. `admissions` are counted from there on too.
ClairvoyantResult Clairvoyant(const CacheShape& shape, std::span<const ReplayStep> steps,
                              size_t first_counted);

}  // namespace hearth::worker
