// The last steps of a draw, from whatever its candidates came: all logits or the largest alone.
// Used by the two samplers, which must agree bit by bit.
#pragma once

#include <cstdint>
#include <vector>

#include "services/gpu-worker/sampling/logits.h"

namespace hearth::worker {

// Keeps the nucleus, last in rank first. Orders only as many as it takes: a whole vocabulary is
// never sorted.
void KeepTopP(float top_p, std::vector<Candidate>& candidates);

// The token at `uniform` of the candidates' total weight, in their order.
int32_t Pick(const std::vector<Candidate>& candidates, double uniform);

}  // namespace hearth::worker
