// Times the choice of a token from a row of the 80B model's size, from the whole row and from its
// largest logits as a GPU picks them out: a table. Logits are random: a few hundred stand out, as
// where a model is rather sure.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "services/gpu-worker/sampling/logits.h"
#include "services/gpu-worker/sampling/sampler.h"
#include "services/gpu-worker/sampling/top_sampler.h"

namespace hearth::worker {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kVocabulary = 151936, kRows = 16, kRuns = 10;

struct Row {
  std::vector<float> logits;
  TopLogitsRow top{};
};

Row MakeRow(std::mt19937& random, float temperature) {
  std::normal_distribution<float> normal(0, 2);
  Row row;
  row.logits.resize(kVocabulary);
  for (float& logit : row.logits) logit = normal(random);
  for (int i = 0; i < 300; ++i) {
    row.logits[random() % kVocabulary] = 8 + 4 * std::abs(normal(random));
  }
  const auto ranked = TopRanked(row.logits, kTopLogits);
  row.top.n = kTopLogits;
  row.top.temperature = temperature == 0 ? 1 : temperature;
  for (size_t i = 0; i < ranked.size(); ++i) {
    row.top.ids[i] = ranked[i].id, row.top.logits[i] = ranked[i].logit;
  }
  double sum = 0;
  for (const float logit : row.logits) {
    sum += std::exp((double{logit} - ranked[0].logit) / row.top.temperature);
  }
  row.top.weight_sum = static_cast<float>(sum);
  return row;
}

// Microseconds of one row: the median over all runs.
template <typename Choose>
double Time(const Choose& choose) {
  std::vector<double> times;
  for (int i = 0; i < kRuns * kRows; ++i) {
    const auto begin = Clock::now();
    choose(static_cast<size_t>(i % kRows), static_cast<uint64_t>(i));
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  std::ranges::sort(times);
  return times[times.size() / 2];
}

void Report(const char* name, const SamplingParams& params) {
  std::mt19937 random(1);
  std::vector<Row> rows;
  TokenCounts counts;
  rows.reserve(kRows);
  for (int i = 0; i < kRows; ++i) rows.push_back(MakeRow(random, params.temperature));
  for (int i = 0; i < 2000; ++i) counts.AddOutput(static_cast<int32_t>(random() % kVocabulary));
  Sampler sampler;
  const double whole = Time([&](size_t row, uint64_t position) {
    if (!sampler.Sample(params, counts, position, rows[row].logits).ok()) std::abort();
  });
  int n_asked = 0, n_told = 0;
  const double top = Time([&](size_t row, uint64_t position) {
    ++n_asked;
    n_told += SampleFromTop(params, counts, position, kVocabulary, rows[row].top).has_value();
  });
  std::printf("| %s | %.0f | %.1f | %.0f %% |\n", name, whole, top, 100.0 * n_told / n_asked);
}

int Main() {
  std::printf("microseconds of a row of %d, median of %d\n\n", kVocabulary, kRuns * kRows);
  std::printf("| request | from the whole row | from the largest 256 | of which tell |\n");
  std::printf("| --- | --- | --- | --- |\n");
  Report("greedy", {.temperature = 0});
  Report("greedy, repetition penalty", {.temperature = 0, .repetition_penalty = 1.1f});
  Report("temperature 0.7, top_k 20, top_p 0.8", {.temperature = 0.7f, .top_k = 20, .top_p = 0.8f});
  Report("temperature 0.6, top_p 0.9", {.temperature = 0.6f, .top_p = 0.9f});
  Report("temperature 1, min_p 0.05", {.temperature = 1, .min_p = 0.05f});
  Report("temperature 1 alone", {});
  Report("greedy, 5 logprobs", {.temperature = 0, .logprobs = 5});
  return 0;
}

}  // namespace
}  // namespace hearth::worker

int main() { return hearth::worker::Main(); }
