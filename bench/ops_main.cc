// Times the ops of the fast CPU backend at the 80B model's shapes: one JSON object. The caller puts
// the machine's measured rates beside them (hearth benchmark --machine).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bench/ops_cases.h"
#include "common/base/json.h"

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
    const auto begin = Clock::now();
    one.run();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::ranges::sort(seconds);
  return seconds;
}

int Main(int argc, char** argv) {
  const int n_threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : UsableCores();
  const std::string isa = argc > 2 ? argv[2] : "";
  const worker::Kernels* kernels = worker::FindKernels(isa);
  if (kernels == nullptr) {
    std::fprintf(stderr, "usage: hearth-bench-ops [THREADS [ISA]]; this CPU cannot run '%s'\n",
                 isa.c_str());
    return 2;
  }
  worker::Parallel parallel({.n_threads = n_threads, .spin_microseconds = 200, .pin = true});
  json::array results;
  for (const OpCase& one : MakeOpCases(parallel, *kernels)) {
    const std::vector<double> seconds = Time(one);
    const double median = seconds[seconds.size() / 2];
    results.push_back(json::object{
        {"op", one.op},
        {"shape", one.shape},
        {"n", seconds.size()},
        {"microseconds", json::object{{"median", median * 1e6},
                                      {"min", seconds.front() * 1e6},
                                      {"p95", seconds[seconds.size() * 95 / 100] * 1e6}}},
        {"gb_per_second", one.bytes / median / 1e9},
        {"giga_products_per_second", one.products / median / 1e9},
        {"products", one.is_integer ? "int8" : "float32"}});
    std::fprintf(stderr, "%-22s %-36s %10.1f us %7.1f GB/s %8.1f Gproducts/s\n", one.op.c_str(),
                 one.shape.c_str(), median * 1e6, one.bytes / median / 1e9,
                 one.products / median / 1e9);
  }
  const json::object all = {{"name", "ops"},
                            {"isa", std::string(kernels->name)},
                            {"threads", n_threads},
                            {"results", std::move(results)}};
  std::printf("%s\n", SerializeJson(all).c_str());
  return 0;
}

}  // namespace
}  // namespace hearth::bench

int main(int argc, char** argv) { return hearth::bench::Main(argc, argv); }
