// `hearth cache status` and `hearth cache policy`: the expert cache of a running worker.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/cache.h"
#include "cli/client/session.h"
#include "cli/commands.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace hearth::cli {
namespace {

struct ControlFlags {
  SessionOptions session;
  std::string policy;
  bool json = false;
};

struct Sums {
  uint64_t hits = 0, misses = 0, admissions = 0, evictions = 0;
  double hit_rate() const {
    return hits + misses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(hits + misses);
  }
};

Sums SumOf(const v1::ExpertCacheStatus& status) {
  Sums sums;
  for (const v1::ExpertCacheLayer& layer : status.layers()) {
    sums.hits += layer.hits();
    sums.misses += layer.misses();
    sums.admissions += layer.admissions();
    sums.evictions += layer.evictions();
  }
  return sums;
}

std::string ToText(const v1::ExpertCacheStatus& status) {
  const Sums sums = SumOf(status);
  const uint64_t slots = status.slots_free() + status.slots_loading() + status.slots_resident();
  std::string text = absl::StrFormat(
      "policy      %s (there are %s)\n"
      "slots       %d of %.2f MiB: %d resident, %d loading, %d free\n"
      "uses        %d, %.1f %% hits\n"
      "admissions  %d, evictions %d, failed %d; candidates not worth their copy %d, beyond a "
      "step's number %d\n"
      "bytes       %.1f GB copied to the GPU, %.1f GB read by it in RAM, %.1f GB computed by the "
      "CPU\n"
      "CPU         computed for %.1f s, of which the GPU waited %.1f s; of misses that decode one "
      "row the GPU reads %.1f %%\n",
      status.policy(), absl::StrJoin(status.policies(), ", "), slots,
      static_cast<double>(status.slot_bytes()) / (1 << 20), status.slots_resident(),
      status.slots_loading(), status.slots_free(), sums.hits + sums.misses, 100 * sums.hit_rate(),
      sums.admissions, sums.evictions, status.abandoned(), status.candidates_not_worth(),
      status.candidates_dropped(), static_cast<double>(status.pcie_bytes()) / 1e9,
      static_cast<double>(status.zero_copy_bytes()) / 1e9,
      static_cast<double>(status.cpu_bytes()) / 1e9, status.cpu_seconds(), status.awaited_seconds(),
      100 * status.zero_copy_share());
  for (const v1::TierPart& part : status.parts()) {
    absl::StrAppendFormat(&text, "%-11s %-16s %10.1f MiB\n", part.tier(), part.component(),
                          static_cast<double>(part.bytes()) / (1 << 20));
  }
  return text;
}

json::object ToJson(const v1::ExpertCacheStatus& status) {
  json::array layers, parts;
  for (const v1::ExpertCacheLayer& layer : status.layers()) {
    layers.push_back(json::object{{"layer", layer.layer()},
                                  {"hits", layer.hits()},
                                  {"misses", layer.misses()},
                                  {"admissions", layer.admissions()},
                                  {"evictions", layer.evictions()}});
  }
  for (const v1::TierPart& part : status.parts()) {
    parts.push_back(json::object{
        {"tier", part.tier()}, {"component", part.component()}, {"bytes", part.bytes()}});
  }
  return {{"policy", status.policy()},
          {"policies", json::array(status.policies().begin(), status.policies().end())},
          {"slots",
           {{"free", status.slots_free()},
            {"loading", status.slots_loading()},
            {"resident", status.slots_resident()}}},
          {"slot_bytes", status.slot_bytes()},
          {"hit_rate", SumOf(status).hit_rate()},
          {"pcie_bytes", status.pcie_bytes()},
          {"zero_copy_bytes", status.zero_copy_bytes()},
          {"cpu_bytes", status.cpu_bytes()},
          {"cpu_seconds", status.cpu_seconds()},
          {"awaited_seconds", status.awaited_seconds()},
          {"zero_copy_share", status.zero_copy_share()},
          {"abandoned", status.abandoned()},
          {"candidates_not_worth", status.candidates_not_worth()},
          {"candidates_dropped", status.candidates_dropped()},
          {"layers", std::move(layers)},
          {"tiers", std::move(parts)}};
}

absl::Status ShowStatus(const ControlFlags& flags) {
  HEARTH_ASSIGN_OR_RETURN(const auto session, Session::Open(flags.session));
  HEARTH_ASSIGN_OR_RETURN(const v1::ExpertCacheStatus status, session->client().ExpertCache());
  const std::string text = flags.json ? SerializeJson(ToJson(status)) + "\n" : ToText(status);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

absl::Status ChangePolicy(const ControlFlags& flags) {
  HEARTH_ASSIGN_OR_RETURN(const auto session, Session::Open(flags.session));
  return session->client().SetExpertCachePolicy(flags.policy);
}

void AddSessionFlags(CLI::App& command, ControlFlags* flags) {
  command.add_option("--run-dir", flags->session.run_dir, "Run directory of the cluster");
  command.add_option("--worker", flags->session.worker, "Address of a worker (unix:SOCKET)");
}

}  // namespace

void AddCacheControl(CLI::App& cache, int* exit_code) {
  auto flags = std::make_shared<ControlFlags>();
  CLI::App* status = cache.add_subcommand("status", "What a running worker's cache holds and hits");
  AddSessionFlags(*status, flags.get());
  status->add_flag("--json", flags->json, "Print one JSON object");
  status->callback([flags, exit_code] {
    const absl::Status shown = ShowStatus(*flags);
    *exit_code = shown.ok() ? 0 : Fail("cache status", shown);
  });
  CLI::App* policy =
      cache.add_subcommand("policy", "Changes the policy of a running worker's cache");
  policy->add_option("name", flags->policy, "lru, prompt, predictive, profile or recency")
      ->required();
  AddSessionFlags(*policy, flags.get());
  policy->callback([flags, exit_code] {
    const absl::Status changed = ChangePolicy(*flags);
    *exit_code = changed.ok() ? 0 : Fail("cache policy", changed);
  });
}

}  // namespace hearth::cli
