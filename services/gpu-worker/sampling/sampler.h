// Chooses the next token of one sequence from a row of logits. Used by the scheduler's thread.
//
// Order, as in vLLM: logit_bias, penalties, temperature, min_p, top_k, top_p, draw. Logprobs are of
// the model's own distribution, before all of that.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "services/gpu-worker/sampling/logits_row.h"
#include "services/gpu-worker/sampling/params.h"
#include "services/gpu-worker/sampling/token_counts.h"

namespace hearth::worker {

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct SampledToken {
  int32_t id = 0;
  float logprob = 0;              // where params.logprobs >= 0
  std::vector<TokenLogprob> top;  // params.logprobs of them, by falling logprob, ties by lower id
};

// Keeps its work space between calls; one for each thread that samples.
class Sampler {
 public:
  // `position` counts the sequence's own output tokens: with the seed it determines the draw.
  // DataLoss for NaN or infinite logits.
  absl::StatusOr<SampledToken> Sample(const SamplingParams& params, const TokenCounts& counts,
                                      uint64_t position, std::span<const float> logits);
  // The same bit by bit. Asks for the whole row only if its largest logits can't tell
  // (sampling/top_sampler.h); then also the errors of asking.
  absl::StatusOr<SampledToken> Sample(const SamplingParams& params, const TokenCounts& counts,
                                      uint64_t position, const LogitsRow& row);

  // Its id alone. A guess of the token at `position` is chosen so from the guesser's logits: with
  // the same draw, so that the nearer the two distributions are, the oftener the tokens are the
  // same.
  absl::StatusOr<int32_t> Choose(const SamplingParams& params, const TokenCounts& counts,
                                 uint64_t position, std::span<const float> logits);
  absl::StatusOr<int32_t> Choose(const SamplingParams& params, const TokenCounts& counts,
                                 uint64_t position, const LogitsRow& row);

 private:
  int32_t Draw(const SamplingParams& params, uint64_t position);

  std::vector<float> row_;  // the logits after bias, penalties and temperature
};

}  // namespace hearth::worker
