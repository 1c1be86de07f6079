#include "services/gpu-worker/experts/simulation/report.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace hearth::worker {
namespace {

int LayersWithExperts(const CacheShape& shape) {
  int n = 0;
  for (int layer = 0; layer < shape.n_layers; ++layer) n += shape.HasExperts(layer) ? 1 : 0;
  return n;
}

}  // namespace

std::string ToText(const SimulationReport& report) {
  const int n_layers = LayersWithExperts(report.shape);
  const int n_experts = n_layers * report.shape.n_experts;
  const PolicyOptions& policy = report.options.policy_options;
  const SimulationResult counted = report.results.empty() ? SimulationResult{} : report.results[0];
  std::string text = absl::StrFormat(
      "%s: %d layers of %d experts, %d a token\n"
      "counted: the last %d decoded tokens in %d steps; half-life %g steps, an admission costs %g "
      "misses, at most %d after a step\n\n"
      "%7s %6s  %-11s %7s %9s %9s %10s %9s %9s %7s\n",
      report.source, n_layers, report.shape.n_experts, report.top_k, counted.tokens, counted.steps,
      policy.half_life_steps, policy.admission_cost, report.options.at_most, "slots", "share",
      "policy", "hits", "first 32", "misses", "admissions", "at prompt", "RAM reads", "us/step");
  for (const SimulationResult& r : report.results) {
    const std::string early = r.early_hits + r.early_misses == 0
                                  ? "-"
                                  : absl::StrFormat("%.1f %%", 100 * r.EarlyHitRate());
    absl::StrAppendFormat(
        &text, "%7d %4.0f %%  %-11s %5.1f %% %9s %9.2f %10.2f %9.2f %9.2f %7s\n", r.n_slots,
        100.0 * r.n_slots / n_experts, r.policy, 100 * r.HitRate(), early, r.PerToken(r.misses),
        r.PerToken(r.admissions), r.PerToken(r.prompt_admissions),
        r.PerToken(r.misses + r.admissions + r.prompt_admissions),
        r.seconds == 0 ? "-"
                       : absl::StrFormat("%.1f", 1e6 * r.seconds / static_cast<double>(r.steps)));
  }
  text +=
      "\nMisses, admissions (after decode steps, and at prompts) and RAM reads (all of them) are "
      "experts a decoded token; us/step is the time of "
      "the cache's bookkeeping.\n"
      "optimum: the most hits possible if the future is known and an expert enters only after a "
      "step that used it.\n";
  if (report.early_recall) {
    absl::StrAppendFormat(&text,
                          "A router that is asked one layer early foretells %.1f %% of the uses.\n",
                          100 * *report.early_recall);
  }
  return text;
}

json::object ToJson(const SimulationReport& report) {
  json::array results;
  for (const SimulationResult& r : report.results) {
    results.push_back(json::object{{"policy", r.policy},
                                   {"slots", r.n_slots},
                                   {"tokens", r.tokens},
                                   {"steps", r.steps},
                                   {"hits", r.hits},
                                   {"misses", r.misses},
                                   {"hit_rate", r.HitRate()},
                                   {"early_hit_rate", r.EarlyHitRate()},
                                   {"admissions", r.admissions},
                                   {"prompt_admissions", r.prompt_admissions},
                                   {"bookkeeping_seconds", r.seconds}});
  }
  json::object object = {{"source", report.source},
                         {"layers", LayersWithExperts(report.shape)},
                         {"experts", report.shape.n_experts},
                         {"top_k", report.top_k},
                         {"half_life_steps", report.options.policy_options.half_life_steps},
                         {"admission_cost", report.options.policy_options.admission_cost},
                         {"at_most", report.options.at_most},
                         {"results", std::move(results)}};
  if (report.early_recall) object["early_recall"] = *report.early_recall;
  return object;
}

}  // namespace hearth::worker
