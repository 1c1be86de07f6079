#include "services/gpu-worker/sampling/top_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <vector>

#include "services/gpu-worker/sampling/draw.h"
#include "services/gpu-worker/sampling/logits.h"
#include "services/gpu-worker/sampling/random.h"

namespace hearth::worker {
namespace {

bool MayRaise(const SamplingParams& params) {
  return params.repetition_penalty < 1 || params.frequency_penalty < 0 ||
         params.presence_penalty < 0 ||
         std::ranges::any_of(params.logit_bias,
                             [](const auto& bias) { return !(bias.second <= 0); });
}

bool Changes(const SamplingParams& params) {
  return HasPenalties(params) || !params.logit_bias.empty();
}

// `logit` of everything that is not among the candidates is at most `below`; nothing lies outside
// if they are all.
struct Known {
  std::vector<Candidate> candidates;
  float below = -std::numeric_limits<float>::infinity();
  bool are_all = false;

  bool IsAboveTheRest(float logit) const { return are_all || logit > below; }
};

// The candidates with bias and penalties, which lower at most.
Known ApplyAll(const SamplingParams& params, const TokenCounts& counts, int vocabulary,
               const TopLogitsRow& top) {
  Known known;
  known.are_all = top.n == vocabulary;
  known.below = top.logits[top.n - 1];
  const std::unordered_map<int32_t, float> biases(params.logit_bias.begin(),
                                                  params.logit_bias.end());
  for (int i = 0; i < top.n; ++i) {
    float logit = top.logits[i];
    if (const auto bias = biases.find(top.ids[i]); bias != biases.end()) logit += bias->second;
    const auto times = counts.seen().find(top.ids[i]);
    if (HasPenalties(params) && times != counts.seen().end()) {
      logit = Penalised(params, times->second, logit);
    }
    known.candidates.push_back({top.ids[i], logit});
  }
  return known;
}

// The first `n` by rank, or nothing where others may be among them.
std::optional<std::vector<Candidate>> FirstRanked(const Known& known, int n) {
  std::vector<Candidate> ranked = known.candidates;
  std::ranges::sort(ranked, RanksBefore);
  const auto wanted = static_cast<size_t>(n);
  if (wanted >= ranked.size()) {
    if (!known.are_all) return std::nullopt;
    return ranked;
  }
  ranked.resize(wanted);
  if (!known.IsAboveTheRest(ranked.back().logit)) return std::nullopt;
  return ranked;
}

// The nucleus in KeepTopP's order, or nothing where it is not certain, given the sum of all weights
// within kWeightSumError.
std::optional<std::vector<Candidate>> Nucleus(float top_p, const Known& known, double weight_sum) {
  std::vector<Candidate> ranked = known.candidates;
  std::ranges::sort(ranked, RanksBefore);
  const double least = top_p * weight_sum * (1 - kWeightSumError);
  const double most = top_p * weight_sum * (1 + kWeightSumError);
  double sum = 0;
  for (size_t i = 0; i < ranked.size() && known.IsAboveTheRest(ranked[i].logit); ++i) {
    sum += std::exp(ranked[i].logit);
    if (sum < least) continue;
    if (sum < most) return std::nullopt;
    ranked.resize(i + 1);
    std::ranges::reverse(ranked);
    return ranked;
  }
  return std::nullopt;
}

std::optional<std::vector<Candidate>> CandidatesOf(const SamplingParams& params, const Known& known,
                                                   const TopLogitsRow& top) {
  const float least = std::log(params.min_p);  // -infinity where min_p is 0
  std::optional<std::vector<Candidate>> candidates;
  if (params.top_k > 0) {
    candidates = FirstRanked(known, params.top_k);
    if (!candidates.has_value()) return std::nullopt;
    if (params.min_p > 0) {
      std::erase_if(*candidates, [&](const Candidate& c) { return c.logit < least; });
    }
  } else if (params.min_p > 0) {
    if (!known.IsAboveTheRest(least) && !known.are_all) return std::nullopt;
    candidates = known.candidates;
    std::erase_if(*candidates, [&](const Candidate& c) { return !(c.logit >= least); });
    std::ranges::sort(*candidates, {}, &Candidate::id);
  } else {
    if (!(params.top_p < 1) || Changes(params) || top.temperature != params.temperature) {
      return std::nullopt;
    }
    return Nucleus(params.top_p, known, top.weight_sum);
  }
  if (params.top_p < 1) KeepTopP(params.top_p, *candidates);
  return candidates;
}

}  // namespace

std::optional<int32_t> SampleFromTop(const SamplingParams& params, const TokenCounts& counts,
                                     uint64_t position, int vocabulary, const TopLogitsRow& top) {
  if (top.flags != TopLogitsRow::kFine || top.n < 1 || params.logprobs >= 0 || MayRaise(params)) {
    return std::nullopt;
  }
  Known known = ApplyAll(params, counts, vocabulary, top);
  const Candidate best = *std::ranges::min_element(known.candidates, RanksBefore);
  if (!known.IsAboveTheRest(best.logit)) return std::nullopt;
  if (params.temperature == 0) return best.id;
  // The sampler's arithmetic; rounding keeps the order, so that the rest stays at or below `below`.
  for (Candidate& candidate : known.candidates) {
    candidate.logit = (candidate.logit - best.logit) / params.temperature;
  }
  known.below = (known.below - best.logit) / params.temperature;
  const auto candidates = CandidatesOf(params, known, top);
  if (!candidates.has_value() || candidates->empty()) return std::nullopt;
  return Pick(*candidates, UniformAt(params.seed, position));
}

}  // namespace hearth::worker
