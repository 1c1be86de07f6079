#include "services/gpu-worker/sampling/sampler.h"

#include <algorithm>
#include <cmath>

#include "common/base/status_macros.h"
#include "services/gpu-worker/sampling/draw.h"
#include "services/gpu-worker/sampling/logits.h"
#include "services/gpu-worker/sampling/random.h"
#include "services/gpu-worker/sampling/top_sampler.h"

namespace hearth::worker {
namespace {

// Tokens of at least min_p times the best one's probability, unordered.
std::vector<Candidate> AboveMinP(std::span<const float> row, float min_p) {
  const float least = Largest(row) + std::log(min_p);  // -infinity where min_p is 0
  std::vector<Candidate> kept;
  if (min_p == 0) kept.reserve(row.size());
  for (size_t i = 0; i < row.size(); ++i) {
    if (row[i] >= least) kept.push_back({static_cast<int32_t>(i), row[i]});
  }
  return kept;
}

std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, int n, double log_sum) {
  std::vector<TokenLogprob> top;
  for (const Candidate& candidate : TopRanked(logits, n)) {
    top.push_back({candidate.id, static_cast<float>(candidate.logit - log_sum)});
  }
  return top;
}

}  // namespace

absl::StatusOr<SampledToken> Sampler::Sample(const SamplingParams& params,
                                             const TokenCounts& counts, uint64_t position,
                                             std::span<const float> logits) {
  SampledToken token;
  HEARTH_ASSIGN_OR_RETURN(token.id, Choose(params, counts, position, logits));
  if (params.logprobs >= 0) {
    const double log_sum = LogSumExp(logits);
    token.logprob = static_cast<float>(logits[static_cast<size_t>(token.id)] - log_sum);
    token.top = TopLogprobs(logits, params.logprobs, log_sum);
  }
  return token;
}

absl::StatusOr<SampledToken> Sampler::Sample(const SamplingParams& params,
                                             const TokenCounts& counts, uint64_t position,
                                             const LogitsRow& row) {
  if (params.logprobs < 0) {
    SampledToken token;
    HEARTH_ASSIGN_OR_RETURN(token.id, Choose(params, counts, position, row));
    return token;
  }
  HEARTH_ASSIGN_OR_RETURN(const std::span<const float> logits, row.Whole());
  return Sample(params, counts, position, logits);
}

absl::StatusOr<int32_t> Sampler::Choose(const SamplingParams& params, const TokenCounts& counts,
                                        uint64_t position, const LogitsRow& row) {
  if (row.top() != nullptr) {
    const auto id = SampleFromTop(params, counts, position, row.vocabulary(), *row.top());
    if (id.has_value()) return *id;
  }
  HEARTH_ASSIGN_OR_RETURN(const std::span<const float> logits, row.Whole());
  return Choose(params, counts, position, logits);
}

absl::StatusOr<int32_t> Sampler::Choose(const SamplingParams& params, const TokenCounts& counts,
                                        uint64_t position, std::span<const float> logits) {
  HEARTH_RETURN_IF_ERROR(CheckLogits(logits));
  row_.assign(logits.begin(), logits.end());
  ApplyBiasAndPenalties(params, counts, row_);
  return params.temperature == 0 ? ArgMax(row_) : Draw(params, position);
}

int32_t Sampler::Draw(const SamplingParams& params, uint64_t position) {
  // Relative to the largest, so that a tiny temperature cannot make infinities.
  const float best = Largest(row_);
  for (float& logit : row_) logit = (logit - best) / params.temperature;

  std::vector<Candidate> candidates;
  if (params.top_k > 0) {
    candidates = TopRanked(row_, params.top_k);
    if (params.min_p > 0) {
      const float least = std::log(params.min_p);
      std::erase_if(candidates, [&](const Candidate& c) { return c.logit < least; });
    }
  } else {
    candidates = AboveMinP(row_, params.min_p);
  }
  if (params.top_p < 1) KeepTopP(params.top_p, candidates);
  return Pick(candidates, UniformAt(params.seed, position));
}

}  // namespace hearth::worker
