#include "services/gpu-worker/sampling/logits.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace hearth::worker {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool IsBroken(float logit) { return !(logit < kInfinity); }  // also NaN

}  // namespace

absl::Status CheckLogits(std::span<const float> logits) {
  // Nearly always all is well: a loop without branches, many logits at once.
  unsigned any_broken = 0, any_finite = 0;
  for (const float logit : logits) {
    any_broken |= static_cast<unsigned>(IsBroken(logit));
    any_finite |= static_cast<unsigned>(logit > -kInfinity);
  }
  if (any_broken != 0) {
    const auto at = std::ranges::find_if(logits, IsBroken);
    return absl::DataLossError(absl::StrCat("the model's logit of token ", at - logits.begin(),
                                            " is ", *at,
                                            "; the weights may be damaged: run hearth verify"));
  }
  if (any_finite == 0) return absl::DataLossError("the model gave no token a finite logit");
  return absl::OkStatus();
}

bool HasPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.frequency_penalty != 0 ||
         params.presence_penalty != 0;
}

float Penalised(const SamplingParams& params, int times, float logit) {
  logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  if (times == 0) return logit;
  return logit - (params.frequency_penalty * static_cast<float>(times) + params.presence_penalty);
}

void ApplyBiasAndPenalties(const SamplingParams& params, const TokenCounts& counts,
                           std::span<float> logits) {
  for (const auto& [id, bias] : params.logit_bias) logits[static_cast<size_t>(id)] += bias;
  if (!HasPenalties(params)) return;
  for (const auto& [id, times] : counts.seen()) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = Penalised(params, times, logit);
  }
}

float Largest(std::span<const float> values) {
  constexpr size_t kLanes = 16;  // a register or more of each instruction set
  std::array<float, kLanes> largest;
  largest.fill(-kInfinity);
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float value = values[i + lane];
      largest[lane] = value > largest[lane] ? value : largest[lane];
    }
  }
  for (; i < values.size(); ++i) largest[0] = std::max(largest[0], values[i]);
  return *std::ranges::max_element(largest);
}

int32_t ArgMax(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::find(logits, Largest(logits)) - logits.begin());
}

double LogSumExp(std::span<const float> logits) {
  const double largest = Largest(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

std::vector<Candidate> TopRanked(std::span<const float> logits, int n) {
  // A heap whose top is the last in rank: most tokens of a row fail its one comparison.
  std::vector<Candidate> heap;
  const size_t wanted = std::min(static_cast<size_t>(n), logits.size());
  if (wanted == 0) return heap;
  heap.reserve(wanted);
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate candidate{static_cast<int32_t>(i), logits[i]};
    if (heap.size() == wanted) {
      if (!RanksBefore(candidate, heap.front())) continue;
      std::pop_heap(heap.begin(), heap.end(), RanksBefore);
      heap.pop_back();
    }
    heap.push_back(candidate);
    std::push_heap(heap.begin(), heap.end(), RanksBefore);
  }
  std::sort_heap(heap.begin(), heap.end(), RanksBefore);
  return heap;
}

}  // namespace hearth::worker
