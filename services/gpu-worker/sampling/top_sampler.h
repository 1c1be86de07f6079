// Samples from a row's largest logits alone, where that is provably what Sampler::Sample gives on
// all of them. Used by Sampler for rows whose logits stay on a device.
#pragma once

#include <cstdint>
#include <optional>

#include "services/gpu-worker/sampling/params.h"
#include "services/gpu-worker/sampling/token_counts.h"
#include "services/gpu-worker/sampling/top_logits.h"

namespace hearth::worker {

// The token that Sampler::Sample returns for the row of which `top` is taken, or nothing: then the
// whole row must be looked at. Nothing for
//   - rows with flags, and requests for logprobs;
//   - a bias above 0 or penalties that could raise a token (below 0, or a repetition penalty below
//   1):
//     one that is not among the largest might come to be;
//   - draws from everything (no top_k, min_p or top_p), whose order is that of the ids;
//   - nuclei (top_p without top_k and min_p) of rows with a bias or penalties, or that were weighed
//     with another temperature;
//   - whatever a token at or below the last of `top` could have a part in: a nucleus of more
//   tokens,
//     a top_k above 255, ties.
std::optional<int32_t> SampleFromTop(const SamplingParams& params, const TokenCounts& counts,
                                     uint64_t position, int vocabulary, const TopLogitsRow& top);

}  // namespace hearth::worker
