// Times the ops of the fast CPU backend at the 80B model's shapes: one JSON object. Each stands
// beside its roof, the time that memory or arithmetic needs at the speed that they were measured to
// have in the same second: a virtual machine's memory has moods.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "bench/ops_cases.h"
#include "common/base/json.h"
#include "common/machine/machine_speed.h"

namespace hearth::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSecondsACase = 0.6;
constexpr int kMinRuns = 5, kMaxRuns = 2000;

std::vector<double> Time(const OpCase& one) {
  one.run();
  std::vector<double> seconds;
  const auto end = Clock::now() + std::chrono::duration<double>(kSecondsACase);
  while ((Clock::now() < end || seconds.size() < kMinRuns) && seconds.size() < kMaxRuns) {
    if (one.prepare) one.prepare();
    const auto begin = Clock::now();
    one.run();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::ranges::sort(seconds);
  return seconds;
}

// Products a second of each kind at best; a product is two of the machine's operations.
struct Peaks {
  double int8 = 0, float32 = 0;
};

Peaks MeasurePeaks(int n_threads, std::string_view isa) {
  const std::string_view int8 = isa == "avx2" ? "int8_madd" : "int8_vnni";
  Peaks peaks;
  for (const ComputeRate& rate : MeasureComputeRates(n_threads)) {
    if (rate.name == int8) peaks.int8 = rate.operations_per_second.median / 2;
    if (rate.name == "float32_fma") peaks.float32 = rate.operations_per_second.median / 2;
  }
  return peaks;
}

// Just before the op; 0 where there is no memory for it.
double BytesPerSecond(int n_threads) {
  const auto read = MeasureReadBandwidth(n_threads, {.time = std::chrono::milliseconds(60),
                                                     .repetitions = 3,
                                                     .buffer_bytes = uint64_t{256} << 20});
  return read.ok() ? read->median : 0;
}

json::object Measure(const OpCase& one, const Peaks& peaks, int n_threads) {
  const double bandwidth = BytesPerSecond(n_threads);
  const std::vector<double> seconds = Time(one);
  const double median = seconds[seconds.size() / 2];
  const double memory = bandwidth > 0 ? one.bytes / bandwidth : 0;
  const double arithmetic = one.products / (one.is_integer ? peaks.int8 : peaks.float32);
  const std::string roof = memory > arithmetic ? "memory" : one.is_integer ? "int8" : "float32";
  const double share = std::max(memory, arithmetic) / median;
  std::fprintf(stderr,
               "%-22s %-36s %10.1f us %7.1f of %5.1f GB/s %8.1f Gproducts/s %4.0f %% of %s\n",
               one.op.c_str(), one.shape.c_str(), median * 1e6, one.bytes / median / 1e9,
               bandwidth / 1e9, one.products / median / 1e9, share * 100, roof.c_str());
  return {{"op", one.op},
          {"shape", one.shape},
          {"n", seconds.size()},
          {"microseconds", json::object{{"median", median * 1e6},
                                        {"min", seconds.front() * 1e6},
                                        {"p95", seconds[seconds.size() * 95 / 100] * 1e6}}},
          {"gb_per_second", one.bytes / median / 1e9},
          {"read_gb_per_second", bandwidth / 1e9},
          {"giga_products_per_second", one.products / median / 1e9},
          {"products", one.is_integer ? "int8" : "float32"},
          {"roof", roof},
          {"share", share}};
}

int Main(int argc, char** argv) {
  const int n_threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : UsableCores();
  const std::string isa = argc > 2 && std::string_view(argv[2]) != "best" ? argv[2] : "";
  const worker::Kernels* kernels = worker::FindKernels(isa);
  if (kernels == nullptr) {
    std::fprintf(stderr, "usage: hearth-bench-ops [THREADS [ISA [OP]]]; this CPU cannot run '%s'\n",
                 isa.c_str());
    return 2;
  }
  worker::Parallel parallel({.n_threads = n_threads, .spin_microseconds = 200, .pin = true});
  const Peaks peaks = MeasurePeaks(n_threads, kernels->name);
  json::array results;
  const std::string_view only = argc > 3 ? argv[3] : "";
  for (const OpCase& one : MakeOpCases(parallel, *kernels)) {
    if (one.op.find(only) == std::string::npos) continue;
    results.push_back(Measure(one, peaks, n_threads));
  }
  const json::object all = {
      {"name", "ops"},
      {"isa", std::string(kernels->name)},
      {"threads", n_threads},
      {"giga_products_per_second",
       json::object{{"int8", peaks.int8 / 1e9}, {"float32", peaks.float32 / 1e9}}},
      {"results", std::move(results)}};
  std::printf("%s\n", SerializeJson(all).c_str());
  return 0;
}

}  // namespace
}  // namespace hearth::bench

int main(int argc, char** argv) { return hearth::bench::Main(argc, argv); }
