// Drives an engine as the worker's scheduler would and keeps the times. Used by `hearth benchmark`.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "services/gpu-worker/benchmark/test_list.h"
#include "services/gpu-worker/benchmark/traffic.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

// Counts how often experts are asked for: once for each that a layer of a step uses. Thread-safe.
class CountingExperts final : public ExpertSource {
 public:
  explicit CountingExperts(ExpertSource* from) : from_(*from) {}
  absl::StatusOr<ExpertRef> Get(int layer, int expert) override {
    count_.fetch_add(1, std::memory_order_relaxed);
    return from_.Get(layer, expert);
  }
  std::span<const std::byte> Packed(int layer, int expert) override {
    return from_.Packed(layer, expert);
  }
  std::span<const std::byte> Memory() override { return from_.Memory(); }
  uint64_t generation() override { return from_.generation(); }
  void CountUse(int, int) override { count_.fetch_add(1, std::memory_order_relaxed); }
  uint64_t Take() { return count_.exchange(0, std::memory_order_relaxed); }

 private:
  ExpertSource& from_;
  std::atomic<uint64_t> count_{0};
};

struct RunOptions {
  int repetitions = 5;
  int max_batch_tokens = 512;  // as the engine's
  int64_t warm_up_tokens = 8;  // of decode tests; more let an expert cache settle
  uint64_t seed = 1;           // of token ids and filled contexts
  // Guesses a step of decode tests (multi-token prediction), and the share of them that counts as
  // right: random weights guess nothing, so what a guess is worth is imposed, as routing is.
  int drafts = 0;
  double right_share = 0.8;
};

struct BenchmarkResult {
  BenchmarkTest test;
  std::vector<double> tokens_per_second;      // of each repetition
  std::vector<double> first_token_seconds;    // prefill: of each sequence of each repetition
  std::vector<double> between_token_seconds;  // decode: of each step of each repetition
  double bytes_per_token = 0;                 // that had to be touched, on average
  double experts_per_step = 0;  // different ones a layer, on average, without guesses'
  double tokens_per_step = 1;   // of a sequence, on average
  // Of an engine with an expert cache, a step of the repetitions: its uses that were hits, bytes
  // copied over PCIe, and the time that CPU threads computed experts.
  bool has_tiers = false;
  double hit_rate = 0, pcie_bytes_per_step = 0, in_place_bytes_per_step = 0;
  double cpu_bytes_per_step = 0, cpu_seconds_per_step = 0, awaited_seconds_per_step = 0;
  double zero_copy_share = 0;  // at the end
};

// Runs a test once to warm up (a decode test for warm_up_tokens) and then `repetitions` times.
// Token ids are random. Contexts are filled, not computed (Engine::FillContext). Prompts share a
// step's rows equally, as where nobody decodes. Choosing a token from the logits is not part of it.
//
// With drafts, each step guesses, computes the guesses' rows, and takes back those from the first
// wrong one on; the same number of each sequence is right.
absl::StatusOr<BenchmarkResult> RunBenchmark(Engine& engine, CountingExperts& experts,
                                             const Traffic& traffic, const BenchmarkTest& test,
                                             const RunOptions& options);

// KV tokens that the largest of the tests or its warm-up needs, in whole pages.
int64_t KvTokensNeeded(const std::vector<BenchmarkTest>& tests, int page_tokens,
                       int64_t warm_up_tokens);

// Sequences that the largest of the tests has at once.
int LargestBatch(const std::vector<BenchmarkTest>& tests);

}  // namespace hearth::worker
