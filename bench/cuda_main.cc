// hearth-bench-cuda [GROUP] [FILTER]: times the CUDA kernels at the 80B model's shapes, of all
// groups or one, those whose op holds FILTER: a table on stderr, one JSON object on
// stdout. Each case's launches are replayed as a CUDA graph, so that launch gaps are those of a
// decode step; the median of the replays counts.
#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "bench/cuda_cases.h"
#include "common/base/json.h"
#include "services/gpu-worker/ops/cuda/device.h"

namespace hearth::bench {
namespace {

using worker::Event;
using worker::Graph;
using worker::GraphExec;
using worker::Stream;

constexpr int kReplays = 21;

// As many runs a graph as move eight times what an L2 of 50 MB holds: the next replay shall not
// find the first ones' bytes there.
int RunsAGraph(const CudaCase& one) {
  return static_cast<int>(std::clamp(400e6 / one.bytes, 24.0, 1024.0));
}

#define RETURN_IF_CUDA_ERROR(expression)    \
  do {                                      \
    const cudaError_t error = (expression); \
    if (error != cudaSuccess) return error; \
  } while (false)

// Seconds of one run, by rising time, one value a replay.
cudaError_t Time(const CudaCase& one, std::vector<double>* seconds) {
  Stream stream;
  Event begin, end;
  Graph graph;
  GraphExec exec;
  const int n_runs = RunsAGraph(one);
  RETURN_IF_CUDA_ERROR(stream.Create());
  RETURN_IF_CUDA_ERROR(begin.Create());
  RETURN_IF_CUDA_ERROR(end.Create());
  RETURN_IF_CUDA_ERROR(one.run(0, stream.get()));
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream.get()));
  RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < n_runs; ++i) RETURN_IF_CUDA_ERROR(one.run(i, stream.get()));
  RETURN_IF_CUDA_ERROR(cudaStreamEndCapture(stream.get(), graph.put()));
  RETURN_IF_CUDA_ERROR(cudaGraphInstantiate(exec.put(), graph.get(), 0));
  for (int replay = -2; replay < kReplays; ++replay) {  // two to warm up
    RETURN_IF_CUDA_ERROR(cudaEventRecord(begin.get(), stream.get()));
    RETURN_IF_CUDA_ERROR(cudaGraphLaunch(exec.get(), stream.get()));
    RETURN_IF_CUDA_ERROR(cudaEventRecord(end.get(), stream.get()));
    RETURN_IF_CUDA_ERROR(cudaEventSynchronize(end.get()));
    float milliseconds = 0;
    RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
    if (replay >= 0) seconds->push_back(milliseconds / 1e3 / n_runs);
  }
  std::ranges::sort(*seconds);
  return cudaSuccess;
}

json::object Report(const CudaCase& one, const std::vector<double>& seconds, double copy_rate) {
  const double median = seconds[seconds.size() / 2];
  const double rate = one.bytes / median;
  std::fprintf(stderr, "%-24s %-34s %9.2f us %8.1f GB/s %6.1f %% of copy %8.2f TFLOP/s\n",
               one.op.c_str(), one.shape.c_str(), median * 1e6, rate / 1e9, 100 * rate / copy_rate,
               one.flops / median / 1e12);
  return {{"op", one.op},
          {"shape", one.shape},
          {"n", seconds.size()},
          {"runs_a_graph", RunsAGraph(one)},
          {"microseconds", json::object{{"median", median * 1e6},
                                        {"min", seconds.front() * 1e6},
                                        {"p95", seconds[seconds.size() * 95 / 100] * 1e6}}},
          {"bytes", one.bytes},
          {"gb_per_second", rate / 1e9},
          {"share_of_copy", rate / copy_rate},
          {"tflop_per_second", one.flops / median / 1e12}};
}

struct CaseGroup {
  const char* name;
  void (*add)(CudaCases* cases);
};
constexpr CaseGroup kGroups[] = {
    {"float linears", AddLinearCases}, {"decode linears", AddDecodeCases},
    {"experts", AddExpertCases},       {"decode layers", AddLayerCases},
    {"mixer", AddMixerCases},          {"attention", AddAttentionCases},
    {"prefill", AddPrefillCases},      {"prefill mixer", AddPrefillMixerCases}};

int Main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  const bool is_group =
      std::ranges::any_of(kGroups, [&](const CaseGroup& group) { return first == group.name; });
  const std::string filter = !is_group ? first : argc > 2 ? argv[2] : "";
  cudaDeviceProp device{};
  const cudaError_t found = cudaGetDeviceProperties(&device, 0);
  if (found != cudaSuccess) {
    std::fprintf(stderr, "hearth-bench-cuda: no device: %s\n", cudaGetErrorString(found));
    return 1;
  }
  CudaCases cases;
  AddCopyCase(&cases);
  for (const CaseGroup& group : kGroups) {
    if (!is_group || first == group.name) group.add(&cases);
  }
  json::array results;
  double copy_rate = 1;
  int n_failed = 0;
  for (const CudaCase& one : cases) {
    if (one.op != "copy" && one.op.find(filter) == std::string::npos) continue;
    std::vector<double> seconds;
    const cudaError_t error = Time(one, &seconds);
    if (error != cudaSuccess) {
      std::fprintf(stderr, "%-24s %-34s FAILED: %s\n", one.op.c_str(), one.shape.c_str(),
                   cudaGetErrorString(error));
      ++n_failed;
      continue;
    }
    if (one.op == "copy") copy_rate = one.bytes / seconds[seconds.size() / 2];
    results.push_back(Report(one, seconds, copy_rate));
  }
  const json::object all = {{"name", "cuda"},
                            {"device", std::string(device.name)},
                            {"multiprocessors", device.multiProcessorCount},
                            {"l2_bytes", device.l2CacheSize},
                            {"failed", n_failed},
                            {"results", std::move(results)}};
  std::printf("%s\n", SerializeJson(all).c_str());
  return n_failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hearth::bench

int main(int argc, char** argv) { return hearth::bench::Main(argc, argv); }
