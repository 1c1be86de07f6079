#include "services/gpu-worker/experts/simulation/simulator.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "common/base/status_macros.h"
#include "services/gpu-worker/experts/expert_cache.h"
#include "services/gpu-worker/experts/simulation/clairvoyant.h"

namespace hearth::worker {
namespace {

std::pair<uint64_t, uint64_t> HitsAndMisses(const ExpertCache& cache, CacheStatistics* statistics) {
  cache.CopyStatistics(statistics);
  std::pair<uint64_t, uint64_t> sums;
  for (const LayerCounts& layer : statistics->layers) {
    sums.first += layer.hits;
    sums.second += layer.misses;
  }
  return sums;
}

uint64_t Admit(ExpertCache& cache, int at_most) {
  const auto admissions = cache.PlanAdmissions(at_most);
  for (const Admission& admission : admissions) cache.Publish(admission);
  return admissions.size();
}

void RecordEarly(ExpertCache& cache, const ReplayStep& step) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < step.early_uses.size(); ++i) {
    ids.push_back(step.early_uses[i].expert);
    const int layer = step.early_uses[i].layer;
    if (i + 1 < step.early_uses.size() && step.early_uses[i + 1].layer == layer) continue;
    cache.RecordPrediction(layer, ids);
    ids.clear();
  }
}

SimulationResult FromClairvoyant(const CacheShape& shape, std::span<const ReplayStep> steps,
                                 size_t first_counted) {
  const ClairvoyantResult found = Clairvoyant(shape, steps, first_counted);
  SimulationResult result;
  result.hits = found.hits;
  result.misses = found.misses;
  result.admissions = found.admissions;
  return result;
}

SimulationResult Run(ExpertCache& cache, std::span<const ReplayStep> steps,
                     const SimulationOptions& options) {
  SimulationResult result;
  CacheStatistics statistics;
  const int n_slots = cache.shape().n_slots;
  Admit(cache, n_slots);  // a profile is loaded at the start
  auto before = HitsAndMisses(cache, &statistics);
  for (size_t t = 0; t < steps.size(); ++t) {
    const ReplayStep& step = steps[t];
    const bool counts = t >= options.first_counted;
    if (step.is_prompt) {
      cache.RecordPrompt(step.uses, step.n_tokens);
      const uint64_t n = Admit(cache, n_slots);
      if (counts) result.prompt_admissions += n;
      continue;
    }
    RecordEarly(cache, step);
    const auto start = std::chrono::steady_clock::now();
    cache.RecordStep(step.uses);
    const uint64_t n = Admit(cache, options.at_most);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    const auto after = HitsAndMisses(cache, &statistics);
    const uint64_t hits = after.first - before.first, misses = after.second - before.second;
    before = after;
    if (!counts) continue;
    result.hits += hits;
    result.misses += misses;
    result.admissions += n;
    result.seconds += time.count();
    if (step.age < kEarlyTokens) {
      result.early_hits += hits;
      result.early_misses += misses;
    }
  }
  return result;
}

double Share(uint64_t part, uint64_t rest) {
  return part + rest == 0 ? 0 : static_cast<double>(part) / static_cast<double>(part + rest);
}

}  // namespace

double SimulationResult::HitRate() const { return Share(hits, misses); }
double SimulationResult::EarlyHitRate() const { return Share(early_hits, early_misses); }
double SimulationResult::PerToken(uint64_t n) const {
  return tokens == 0 ? 0 : static_cast<double>(n) / static_cast<double>(tokens);
}

absl::StatusOr<SimulationResult> Simulate(const CacheShape& shape,
                                          std::span<const ReplayStep> steps,
                                          const SimulationOptions& options) {
  CacheShape sized = shape;
  sized.n_slots = options.n_slots;
  SimulationResult result;
  if (options.policy == "optimum") {
    result = FromClairvoyant(sized, steps, options.first_counted);
  } else {
    HEARTH_ASSIGN_OR_RETURN(const auto cache,
                            ExpertCache::Create(sized, options.policy, options.policy_options));
    result = Run(*cache, steps, options);
  }
  result.policy = options.policy;
  result.n_slots = options.n_slots;
  for (size_t t = options.first_counted; t < steps.size(); ++t) {
    if (steps[t].is_prompt) continue;
    ++result.steps;
    result.tokens += static_cast<uint64_t>(steps[t].n_tokens);
  }
  return result;
}

size_t StepAfterShare(std::span<const ReplayStep> steps, double share) {
  const auto is_decode = [](const ReplayStep& step) { return !step.is_prompt; };
  auto left =
      static_cast<int64_t>(share * static_cast<double>(std::ranges::count_if(steps, is_decode)));
  size_t t = 0;
  for (; t < steps.size() && left > 0; ++t) left -= is_decode(steps[t]) ? 1 : 0;
  return t;
}

std::optional<double> EarlyRecall(const CacheShape& shape, std::span<const ReplayStep> steps) {
  uint64_t n_found = 0, n_missed = 0;
  std::vector<char> is_predicted(static_cast<size_t>(shape.n_keys()), 0);
  std::vector<char> has_predictions(static_cast<size_t>(shape.n_layers), 0);
  for (const ReplayStep& step : steps) {
    if (step.is_prompt) continue;
    const auto mark = [&](char value) {
      for (const ExpertUse& use : step.early_uses) {
        is_predicted[static_cast<size_t>(shape.Key(use.layer, use.expert))] = value;
        has_predictions[static_cast<size_t>(use.layer)] = value;
      }
    };
    mark(1);
    for (const ExpertUse& use : step.uses) {
      if (has_predictions[static_cast<size_t>(use.layer)] == 0) continue;
      ++(is_predicted[static_cast<size_t>(shape.Key(use.layer, use.expert))] != 0 ? n_found
                                                                                  : n_missed);
    }
    mark(0);
  }
  if (n_found + n_missed == 0) return std::nullopt;
  return Share(n_found, n_missed);
}

std::vector<ExpertUses> CountUses(const CacheShape& shape, std::span<const ReplayStep> steps) {
  std::vector<uint64_t> counts(static_cast<size_t>(shape.n_keys()), 0);
  for (const ReplayStep& step : steps) {
    for (const ExpertUse& use : step.uses) {
      counts[static_cast<size_t>(shape.Key(use.layer, use.expert))] +=
          static_cast<uint64_t>(use.rows);
    }
  }
  std::vector<ExpertUses> uses;
  for (int key = 0; key < shape.n_keys(); ++key) {
    const uint64_t count = counts[static_cast<size_t>(key)];
    if (count > 0) uses.push_back({key / shape.n_experts, key % shape.n_experts, count});
  }
  return uses;
}

}  // namespace hearth::worker
