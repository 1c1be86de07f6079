#include "services/gpu-worker/sampling/draw.h"

#include <algorithm>
#include <cmath>

namespace hearth::worker {

void KeepTopP(float top_p, std::vector<Candidate>& candidates) {
  const float best =
      std::max_element(candidates.begin(), candidates.end(),
                       [](const Candidate& a, const Candidate& b) { return RanksBefore(b, a); })
          ->logit;
  double total = 0;
  for (const Candidate& candidate : candidates) total += std::exp(candidate.logit - best);

  const auto ranks_after = [](const Candidate& a, const Candidate& b) { return RanksBefore(b, a); };
  std::make_heap(candidates.begin(), candidates.end(), ranks_after);
  auto heap_end = candidates.end();
  double sum = 0;
  do {
    std::pop_heap(candidates.begin(), heap_end, ranks_after);
    --heap_end;
    sum += std::exp(heap_end->logit - best);
  } while (sum < top_p * total && heap_end != candidates.begin());
  candidates.erase(candidates.begin(), heap_end);
}

int32_t Pick(const std::vector<Candidate>& candidates, double uniform) {
  float best = candidates.front().logit;
  for (const Candidate& candidate : candidates) best = std::max(best, candidate.logit);
  std::vector<float> weights;
  weights.reserve(candidates.size());
  double total = 0;
  for (const Candidate& candidate : candidates) {
    weights.push_back(std::exp(candidate.logit - best));
    total += weights.back();
  }
  double left = uniform * total;
  int32_t last_possible = candidates.front().id;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (weights[i] == 0) continue;
    last_possible = candidates[i].id;
    if (left < weights[i]) return candidates[i].id;
    left -= weights[i];
  }
  return last_possible;  // rounding left a sliver at the end
}

}  // namespace hearth::worker
