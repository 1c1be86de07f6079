#include "services/gpu-worker/benchmark/report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/machine/machine_info.h"

namespace hearth::worker {
namespace {

constexpr const char* kFilled =
    "contexts were filled with random keys, values and states, not computed";

// Of the measured bandwidth, by the median speed.
double BandwidthShare(const BenchmarkReport& report, const BenchmarkResult& result) {
  if (report.read_bandwidth.median <= 0) return 0;
  return Summarise(result.tokens_per_second).median * result.bytes_per_token /
         report.read_bandwidth.median;
}

json::object ResultJson(const BenchmarkReport& report, const BenchmarkResult& result) {
  const std::string_view kind = KindName(result.test.kind);
  json::object object = {{"test", json::string(kind.data(), kind.size())},
                         {"tokens", result.test.tokens},
                         {"context", result.test.context},
                         {"batch", result.test.batch},
                         {"threads", report.n_threads},
                         {"tokens_per_second", ToJson(Summarise(result.tokens_per_second))},
                         {"repetitions", json::array(result.tokens_per_second.begin(),
                                                     result.tokens_per_second.end())},
                         {"bytes_per_token", result.bytes_per_token},
                         {"bandwidth_share", BandwidthShare(report, result)},
                         {"experts_per_layer_and_step", result.experts_per_step}};
  if (result.has_tiers) {
    object["tiers"] = {{"hit_rate", result.hit_rate},
                       {"pcie_bytes_per_step", result.pcie_bytes_per_step},
                       {"in_place_bytes_per_step", result.in_place_bytes_per_step},
                       {"cpu_bytes_per_step", result.cpu_bytes_per_step},
                       {"cpu_seconds_per_step", result.cpu_seconds_per_step},
                       {"awaited_seconds_per_step", result.awaited_seconds_per_step},
                       {"zero_copy_share", result.zero_copy_share}};
  }
  if (!result.first_token_seconds.empty()) {
    object["time_to_first_token_seconds"] = ToJson(Summarise(result.first_token_seconds));
  }
  if (!result.between_token_seconds.empty()) {
    const std::vector<double>& times = result.between_token_seconds;
    object["tokens_per_step"] = result.tokens_per_step;
    object["between_tokens_seconds"] = {{"p50", Percentile(times, 0.5)},
                                        {"p95", Percentile(times, 0.95)},
                                        {"p99", Percentile(times, 0.99)},
                                        {"max", Percentile(times, 1)}};
  }
  return object;
}

std::string ResultLine(const BenchmarkReport& report, const BenchmarkResult& result) {
  const Spread speed = Summarise(result.tokens_per_second);
  std::string line = absl::StrFormat("%-20s %5d %9.2f %9.2f %9.2f ", TestName(result.test),
                                     result.test.batch, speed.median, speed.min, speed.max);
  if (result.first_token_seconds.empty()) {
    const std::vector<double>& times = result.between_token_seconds;
    absl::StrAppendFormat(&line, "%9s %8.1f %8.1f %8.1f ", "", 1000 * Percentile(times, 0.5),
                          1000 * Percentile(times, 0.95), 1000 * Percentile(times, 0.99));
  } else {
    absl::StrAppendFormat(&line, "%9.1f %8s %8s %8s ",
                          1000 * Summarise(result.first_token_seconds).median, "", "", "");
  }
  absl::StrAppendFormat(&line, "%9.1f %6.1f %7.1f\n", result.bytes_per_token / 1e6,
                        100 * BandwidthShare(report, result), result.experts_per_step);
  if (result.has_tiers) {
    absl::StrAppendFormat(
        &line, "%20s %.1f %% hits, a step: %.1f MB copied, %.1f read over PCIe, %.1f by the CPU\n",
        "", 100 * result.hit_rate, result.pcie_bytes_per_step / 1e6,
        result.in_place_bytes_per_step / 1e6, result.cpu_bytes_per_step / 1e6);
    absl::StrAppendFormat(&line, "%20s in %.2f ms, of which the GPU waited %.2f\n", "",
                          1000 * result.cpu_seconds_per_step,
                          1000 * result.awaited_seconds_per_step);
  }
  return line;
}

}  // namespace

json::object ToJson(const BenchmarkReport& report) {
  json::array results, memory;
  for (const BenchmarkResult& result : report.results) {
    results.push_back(ResultJson(report, result));
  }
  for (const MemoryUse& use : report.memory) {
    memory.push_back(
        json::object{{"tier", use.tier}, {"component", use.component}, {"bytes", use.bytes}});
  }
  const BuildInfo build = ThisBuild();
  json::object object = {{"benchmark", "hearth"},
                         {"commit", json::string(build.commit.data(), build.commit.size())},
                         {"dirty", build.is_dirty},
                         {"machine", ToJson(ThisMachine())},
                         {"model", report.model},
                         {"parameters",
                          {{"threads", report.n_threads},
                           {"repetitions", report.repetitions},
                           {"warm_up_tokens", report.warm_up_tokens},
                           {"kernels", report.kernels},
                           {"routing", report.routing},
                           {"mtp", report.mtp},
                           {"token_ids", "random"},
                           {"contexts", report.fills_contexts ? kFilled : "none"}}},
                         {"read_bandwidth_bytes_per_second", ToJson(report.read_bandwidth)},
                         {"load_seconds", report.load_seconds},
                         {"memory", memory},
                         {"results", results}};
  return object;
}

std::string ToText(const BenchmarkReport& report) {
  const MachineInfo machine = ThisMachine();
  const BuildInfo build = ThisBuild();
  std::string text;
  absl::StrAppendFormat(&text, "model     %s\n", report.model);
  absl::StrAppendFormat(&text, "machine   %s, %d cores, %.0f GB, %s\n", machine.cpu_model,
                        machine.usable_cores, static_cast<double>(machine.memory_bytes) / 1e9,
                        machine.kernel);
  absl::StrAppendFormat(&text, "build     %s%s\n", std::string(build.commit),
                        build.is_dirty ? " with changes" : "");
  absl::StrAppendFormat(&text, "kernels   %s, %d threads\n", report.kernels, report.n_threads);
  absl::StrAppendFormat(&text, "routing   %s\n", report.routing);
  if (report.mtp != "off") absl::StrAppendFormat(&text, "guessing  %s\n", report.mtp);
  if (report.fills_contexts) absl::StrAppendFormat(&text, "contexts  %s\n", kFilled);
  absl::StrAppendFormat(&text, "reading   %.1f GB/s (%.1f to %.1f), measured just before\n",
                        report.read_bandwidth.median / 1e9, report.read_bandwidth.min / 1e9,
                        report.read_bandwidth.max / 1e9);
  for (const MemoryUse& use : report.memory) {
    absl::StrAppendFormat(&text, "memory    %-5s %-16s %9.1f MB\n", use.tier, use.component,
                          static_cast<double>(use.bytes) / 1e6);
  }
  absl::StrAppendFormat(&text, "loading   %.1f s\n\n", report.load_seconds);
  absl::StrAppendFormat(&text, "%-20s %5s %9s %9s %9s %9s %8s %8s %8s %9s %6s %7s\n", "test",
                        "batch", "tok/s", "min", "max", "first ms", "p50 ms", "p95 ms", "p99 ms",
                        "MB/token", "% bw", "experts");
  for (const BenchmarkResult& result : report.results) text += ResultLine(report, result);
  return text;
}

}  // namespace hearth::worker
