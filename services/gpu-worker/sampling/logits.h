// Arithmetic on one row of logits, without state: used by the sampler.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "services/gpu-worker/sampling/params.h"
#include "services/gpu-worker/sampling/token_counts.h"

namespace hearth::worker {

// DataLoss, naming the token, for NaN, +infinity, or a row without any finite value.
absl::Status CheckLogits(std::span<const float> logits);

// logit_bias, then repetition, frequency and presence penalties: vLLM's order.
void ApplyBiasAndPenalties(const SamplingParams& params, const TokenCounts& counts,
                           std::span<float> logits);

// Whether there are any, and what they make of the logit of a token that was seen, `times` of them
// in the output.
bool HasPenalties(const SamplingParams& params);
float Penalised(const SamplingParams& params, int times, float logit);

// The largest value; -infinity of none. Not for NaN.
float Largest(std::span<const float> values);

// The lowest index of the largest value.
int32_t ArgMax(std::span<const float> logits);

// log(sum(exp(logits))).
double LogSumExp(std::span<const float> logits);

struct Candidate {
  int32_t id;
  float logit;
};

// Falling logit, ties by rising id: the one order of everything here that ranks tokens.
inline bool RanksBefore(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// The first `n` by rank, in that order; all of them if there are fewer.
std::vector<Candidate> TopRanked(std::span<const float> logits, int n);

}  // namespace hearth::worker
