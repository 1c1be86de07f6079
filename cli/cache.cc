// `hearth cache`: the expert cache. `simulate` replays a routing trace through every policy; the
// rest is in cache_control.cc.
#include "cli/cache.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/benchmark/routing.h"
#include "services/gpu-worker/experts/profile_file.h"
#include "services/gpu-worker/experts/simulation/imposed.h"
#include "services/gpu-worker/experts/simulation/report.h"

namespace hearth::cli {
namespace {

struct SimulateFlags {
  std::string trace, profile;
  std::vector<int> slots;
  std::vector<std::string> policies = {"all"};
  worker::PolicyOptions policy;
  worker::ImposedShape imposed;
  int at_most = 32;
  double warm_up = 0.5;
  uint64_t seed = 1;
  bool json = false;
};

bool IsImposed(const std::string& trace) {
  return trace == "locality" || trace.starts_with("locality:");
}

absl::StatusOr<worker::RoutingTrace> GetTrace(const SimulateFlags& flags) {
  if (!IsImposed(flags.trace)) return worker::ReadTrace(flags.trace);
  const worker::ImposedShape& shape = flags.imposed;
  ModelConfig config;
  config.n_layers = shape.n_layers;
  config.n_experts = shape.n_experts;
  config.experts_per_token = shape.top_k;
  HEARTH_ASSIGN_OR_RETURN(const auto routing, worker::MakeRouting(flags.trace, config, flags.seed));
  return worker::TraceOf(*routing.routing, shape);
}

// "all" leaves out a profile that is not there.
absl::StatusOr<std::vector<std::string>> Policies(const SimulateFlags& flags, bool has_profile) {
  std::vector<std::string> all;
  for (const std::string_view name : worker::PolicyNames()) all.emplace_back(name);
  all.emplace_back("optimum");
  if (std::ranges::find(flags.policies, "all") != flags.policies.end()) {
    if (!has_profile) std::erase(all, "profile");
    return all;
  }
  for (const std::string& name : flags.policies) {
    if (std::ranges::find(all, name) != all.end()) continue;
    std::string known = "all";
    for (const std::string& other : all) absl::StrAppend(&known, ", ", other);
    return absl::InvalidArgumentError(absl::StrCat("--policy ", name, ": allowed are ", known));
  }
  return flags.policies;
}

absl::StatusOr<worker::SimulationReport> RunSimulations(const SimulateFlags& flags) {
  HEARTH_ASSIGN_OR_RETURN(const worker::RoutingTrace trace, GetTrace(flags));
  const std::vector<worker::ReplayStep> steps = worker::Replay(trace);
  worker::SimulationReport report;
  report.source = flags.trace;
  if (!trace.model.empty()) absl::StrAppend(&report.source, " of ", trace.model);
  report.shape = trace.Shape(0);
  report.top_k = trace.top_k;
  worker::SimulationOptions options;
  options.at_most = flags.at_most;
  options.policy_options = flags.policy;
  options.first_counted = worker::StepAfterShare(steps, flags.warm_up);
  if (flags.profile.empty()) {  // what came before is the past that a profile would be of
    options.policy_options.profile =
        worker::CountUses(report.shape, std::span(steps).first(options.first_counted));
  } else {
    HEARTH_ASSIGN_OR_RETURN(options.policy_options.profile,
                            worker::ReadProfileFile(flags.profile, trace.fingerprint));
  }
  report.options = options;
  report.early_recall = worker::EarlyRecall(report.shape, steps);
  HEARTH_ASSIGN_OR_RETURN(const auto policies,
                          Policies(flags, !options.policy_options.profile.empty()));
  for (const int n_slots : flags.slots) {
    for (const std::string& policy : policies) {
      options.policy = policy;
      options.n_slots = n_slots;
      HEARTH_ASSIGN_OR_RETURN(worker::SimulationResult result,
                              worker::Simulate(report.shape, steps, options));
      report.results.push_back(std::move(result));
    }
  }
  return report;
}

void AddSimulate(CLI::App& cache, int* exit_code) {
  auto flags = std::make_shared<SimulateFlags>();
  CLI::App* command = cache.add_subcommand(
      "simulate", "Replays a routing trace: hit rates of the policies and of the optimum");
  command
      ->add_option("trace", flags->trace,
                   "File of `hearth profile --record`, or locality[:WORKING_SET], made up for "
                   "--layers, --experts and --top-k")
      ->required();
  command
      ->add_option("--slots", flags->slots, "Slots of the cache, for all layers together: N[,N...]")
      ->required()
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 24));
  command->add_option("--policy", flags->policies, "all (default), or names, separated by commas")
      ->delimiter(',');
  command->add_option("--at-most", flags->at_most, "Admissions after a decode step (32)")
      ->check(CLI::Range(0, 1 << 24));
  command->add_option("--half-life", flags->policy.half_life_steps, "Of an expert's heat, in steps")
      ->check(CLI::Range(0.1, 1e9))
      ->capture_default_str();
  command
      ->add_option("--admission-cost", flags->policy.admission_cost,
                   "Uses that an admission must gain, in misses")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  command
      ->add_option("--warm-up", flags->warm_up,
                   "Share of the decode steps that fill the cache and the profile (0.5)")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--profile", flags->profile,
                      "For the policy profile (default: counts of the warm-up)");
  command->add_option("--layers", flags->imposed.n_layers, "Of locality (48)")
      ->check(CLI::Range(1, 1024));
  command->add_option("--experts", flags->imposed.n_experts, "A layer, of locality (512)")
      ->check(CLI::Range(1, 4096));
  command->add_option("--top-k", flags->imposed.top_k, "Of locality (10)")
      ->check(CLI::Range(1, 64));
  command->add_option("--tokens", flags->imposed.n_tokens, "Steps of locality (4000)")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--batch", flags->imposed.n_sequences, "Sequences at once, of locality (1)")
      ->check(CLI::Range(1, 256));
  command->add_option("--seed", flags->seed, "Of locality (1)");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([flags, exit_code] {
    const auto report = RunSimulations(*flags);
    if (!report.ok()) {
      *exit_code = Fail("cache simulate", report.status());
      return;
    }
    const std::string text = flags->json ? SerializeJson(ToJson(*report)) + "\n" : ToText(*report);
    std::fputs(text.c_str(), stdout);
  });
}

}  // namespace

void AddCache(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("cache", "The cache of experts in the GPU's memory");
  command->require_subcommand(1);
  AddCacheControl(*command, exit_code);
  AddSimulate(*command, exit_code);
}

}  // namespace hearth::cli
