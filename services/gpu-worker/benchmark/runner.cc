#include "services/gpu-worker/benchmark/runner.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "common/base/status_macros.h"
#include "common/synthetic/random.h"
#include "services/gpu-worker/experts/expert_tier.h"

namespace hearth::worker {
namespace {

using Clock = std::chrono::steady_clock;
constexpr float kTemperature = 0;  // where serving takes the largest logits, so does this

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One repetition: sequences that are read or decoded together.
class Repetition {
 public:
  Repetition(Engine& engine, CountingExperts& experts, const Traffic& traffic,
             const BenchmarkTest& test, const RunOptions& options, uint64_t number)
      : engine_(engine),
        experts_(experts),
        traffic_(traffic),
        test_(test),
        options_(options),
        ids_(StreamOf(options.seed, "tokens") + (number << 32)) {}

  absl::Status Prepare() {
    for (int i = 0; i < test_.batch; ++i) {
      states_.push_back(engine_.NewSequence());
      if (test_.context == 0) continue;
      HEARTH_RETURN_IF_ERROR(engine_.FillContext(states_.back().get(), test_.context,
                                                 options_.seed + static_cast<uint64_t>(i)));
    }
    experts_.Take();
    return absl::OkStatus();
  }

  absl::Status Run(BenchmarkResult& result) {
    const auto start = Clock::now();
    if (test_.kind == BenchmarkTest::Kind::kPrefill) {
      HEARTH_RETURN_IF_ERROR(Prefill(start, result));
    } else {
      HEARTH_RETURN_IF_ERROR(Decode(result));
    }
    const double tokens = static_cast<double>(test_.tokens) * test_.batch;
    result.tokens_per_second.push_back(tokens / SecondsSince(start));
    result.bytes_per_token += bytes_ / tokens;
    result.experts_per_step += static_cast<double>(n_experts_) / static_cast<double>(n_steps_);
    if (test_.kind == BenchmarkTest::Kind::kDecode) {
      result.tokens_per_step += static_cast<double>(test_.tokens) / static_cast<double>(n_steps_);
    }
    return absl::OkStatus();
  }

 private:
  std::vector<int32_t> RandomIds(int64_t n) {
    std::vector<int32_t> ids;
    const auto vocabulary = static_cast<uint64_t>(engine_.config().vocab_size);
    for (int64_t i = 0; i < n; ++i) {
      ids.push_back(static_cast<int32_t>(RandomWord(ids_, next_id_++) % vocabulary));
    }
    return ids;
  }

  absl::Status Step(const std::vector<StepItem>& items) {
    StepTraffic step;
    step.has_logits = false;
    for (const StepItem& item : items) {
      ++step.sequences;
      step.rows += static_cast<int64_t>(item.tokens.size());
      step.kv_positions += item.state->n_tokens() + static_cast<int64_t>(item.tokens.size());
      step.has_logits |= item.logits != LogitsWanted::kNone;
    }
    HEARTH_RETURN_IF_ERROR(engine_.Step(items, &logits_));
    step.experts = experts_.Take();
    n_experts_ += step.experts;
    ++n_steps_;
    bytes_ += StepBytes(traffic_, step);
    return absl::OkStatus();
  }

  // Each step gives the prompts that are not read yet an equal share of its rows.
  absl::Status Prefill(Clock::time_point start, BenchmarkResult& result) {
    std::vector<std::vector<int32_t>> prompts;
    prompts.reserve(static_cast<size_t>(test_.batch));
    for (int i = 0; i < test_.batch; ++i) prompts.push_back(RandomIds(test_.tokens));
    std::vector<size_t> read(prompts.size(), 0);
    while (true) {
      const auto left = std::ranges::count_if(
          read, [this](size_t n) { return static_cast<int64_t>(n) < test_.tokens; });
      if (left == 0) return absl::OkStatus();
      const auto share = static_cast<size_t>(
          std::max<int64_t>(1, options_.max_batch_tokens / static_cast<int64_t>(left)));
      std::vector<StepItem> items;
      std::vector<size_t> finished;
      for (size_t i = 0; i < prompts.size(); ++i) {
        const size_t n = std::min(share, prompts[i].size() - read[i]);
        if (n == 0 || items.size() == static_cast<size_t>(options_.max_batch_tokens)) continue;
        const bool is_end = read[i] + n == prompts[i].size();
        items.push_back({states_[i].get(), std::span(prompts[i]).subspan(read[i], n),
                         is_end ? LogitsWanted::kLast : LogitsWanted::kNone,
                         /*n_drafts=*/0, kTemperature});
        read[i] += n;
        if (is_end) finished.push_back(i);
      }
      HEARTH_RETURN_IF_ERROR(Step(items));
      for (size_t i = 0; i < finished.size(); ++i) {
        result.first_token_seconds.push_back(SecondsSince(start));
      }
    }
  }

  absl::Status Decode(BenchmarkResult& result) {
    for (int64_t token = 0; token < test_.tokens;) {
      const auto begin = Clock::now();
      const auto n_drafts =
          static_cast<int>(std::min<int64_t>(options_.drafts, test_.tokens - token - 1));
      HEARTH_ASSIGN_OR_RETURN(const int n_right, DecodeOnce(n_drafts));
      const double seconds = SecondsSince(begin) / (1 + n_right);
      result.between_token_seconds.insert(result.between_token_seconds.end(),
                                          static_cast<size_t>(n_right) + 1, seconds);
      token += 1 + n_right;
    }
    return absl::OkStatus();
  }

  // One step of all sequences with so many guesses each: how many of them are right.
  absl::StatusOr<int> DecodeOnce(int n_drafts) {
    if (states_.front()->n_tokens() == 0) n_drafts = 0;  // nothing to guess from
    const size_t n_rows = static_cast<size_t>(n_drafts) + 1;
    const std::vector<int32_t> ids = RandomIds(static_cast<int64_t>(states_.size() * n_rows));
    for (int depth = 0; depth < n_drafts; ++depth) {
      HEARTH_RETURN_IF_ERROR(Draft(ids, n_rows, depth));
    }
    std::vector<StepItem> items;
    for (size_t i = 0; i < states_.size(); ++i) {
      items.push_back({.state = states_[i].get(),
                       .tokens = std::span(ids).subspan(i * n_rows, n_rows),
                       .logits = LogitsWanted::kAll,
                       .n_drafts = n_drafts,
                       .temperature = kTemperature});
    }
    HEARTH_RETURN_IF_ERROR(Step(items));
    int n_right = 0;
    while (n_right < n_drafts && RandomShare() < options_.right_share) ++n_right;
    for (const auto& state : states_) engine_.Rollback(*state, n_drafts - n_right);
    return n_right;
  }

  absl::Status Draft(const std::vector<int32_t>& ids, size_t n_rows, int depth) {
    std::vector<DraftItem> items;
    StepTraffic draft;
    for (size_t i = 0; i < states_.size(); ++i) {
      items.push_back(
          {states_[i].get(), ids[i * n_rows + static_cast<size_t>(depth)], kTemperature});
      ++draft.sequences;
      draft.kv_positions += states_[i]->n_tokens() + depth;
    }
    HEARTH_RETURN_IF_ERROR(engine_.Draft(items, depth, &logits_));
    draft.experts = experts_.Take();
    bytes_ += DraftBytes(traffic_, draft);
    return absl::OkStatus();
  }

  double RandomShare() {
    return static_cast<double>(RandomWord(ids_, next_id_++) >> 11) * 0x1.0p-53;
  }

  Engine& engine_;
  CountingExperts& experts_;
  const Traffic& traffic_;
  const BenchmarkTest& test_;
  const RunOptions& options_;
  const uint64_t ids_;
  uint64_t next_id_ = 0;
  std::vector<std::unique_ptr<SequenceState>> states_;
  StepLogits logits_;
  double bytes_ = 0;
  uint64_t n_experts_ = 0;
  int64_t n_steps_ = 0;
};

// What the tiers did since the start.
struct TierSums {
  double hits = 0, misses = 0;
  TierWork work;
};
TierSums SumsOf(Engine& engine) {
  TierSums sums;
  if (engine.expert_tier() == nullptr) return sums;
  const TierStatistics statistics = engine.expert_tier()->Statistics();
  for (const LayerCounts& layer : statistics.cache.layers) {
    sums.hits += static_cast<double>(layer.hits);
    sums.misses += static_cast<double>(layer.misses);
  }
  sums.work = statistics.work;
  return sums;
}

void AddTiers(Engine& engine, const TierSums& before, BenchmarkResult* result) {
  result->has_tiers = engine.expert_tier() != nullptr;
  const TierSums now = SumsOf(engine);
  const double uses = now.hits + now.misses - before.hits - before.misses;
  const auto steps = static_cast<double>(std::max<size_t>(
      1, std::max(result->between_token_seconds.size(), result->first_token_seconds.size())));
  result->hit_rate = uses == 0 ? 0 : (now.hits - before.hits) / uses;
  const auto bytes = [&](uint64_t TierWork::*part) {
    return static_cast<double>(now.work.*part - before.work.*part) / steps;
  };
  result->pcie_bytes_per_step = bytes(&TierWork::pcie_bytes);
  result->in_place_bytes_per_step = bytes(&TierWork::in_place_bytes);
  result->cpu_bytes_per_step = bytes(&TierWork::cpu_bytes);
  result->cpu_seconds_per_step = (now.work.cpu_seconds - before.work.cpu_seconds) / steps;
  result->awaited_seconds_per_step =
      (now.work.awaited_seconds - before.work.awaited_seconds) / steps;
  result->zero_copy_share = now.work.zero_copy_share;
}

int LayersWithExperts(const ModelConfig& config) {
  return static_cast<int>(std::ranges::count(config.layers, true, &LayerConfig::has_experts));
}

}  // namespace

absl::StatusOr<BenchmarkResult> RunBenchmark(Engine& engine, CountingExperts& experts,
                                             const Traffic& traffic, const BenchmarkTest& test,
                                             const RunOptions& options) {
  BenchmarkTest warm_up = test;
  if (test.kind == BenchmarkTest::Kind::kDecode) {
    warm_up.tokens = options.warm_up_tokens;
  }
  BenchmarkResult ignored, result;
  result.test = test;
  result.tokens_per_step = 0;
  TierSums before;
  for (int i = 0; i <= options.repetitions; ++i) {  // the first is to warm up
    if (i == 1) before = SumsOf(engine);
    Repetition repetition(engine, experts, traffic, i == 0 ? warm_up : test, options,
                          static_cast<uint64_t>(i));
    HEARTH_RETURN_IF_ERROR(repetition.Prepare());
    HEARTH_RETURN_IF_ERROR(repetition.Run(i == 0 ? ignored : result));
  }
  AddTiers(engine, before, &result);
  const int layers = std::max(1, LayersWithExperts(engine.config()));
  result.bytes_per_token /= options.repetitions;
  result.experts_per_step /= options.repetitions * static_cast<double>(layers);
  result.tokens_per_step =
      test.kind == BenchmarkTest::Kind::kDecode ? result.tokens_per_step / options.repetitions : 1;
  return result;
}

int64_t KvTokensNeeded(const std::vector<BenchmarkTest>& tests, int page_tokens,
                       int64_t warm_up_tokens) {
  int64_t most = page_tokens;
  for (const BenchmarkTest& test : tests) {
    const bool decodes = test.kind == BenchmarkTest::Kind::kDecode;
    const int64_t tokens = decodes ? std::max(test.tokens, warm_up_tokens) : test.tokens;
    const int64_t pages = (test.context + tokens + page_tokens - 1) / page_tokens;
    most = std::max(most, pages * page_tokens * test.batch);
  }
  return most;
}

int LargestBatch(const std::vector<BenchmarkTest>& tests) {
  int most = 1;
  for (const BenchmarkTest& test : tests) most = std::max(most, test.batch);
  return most;
}

}  // namespace hearth::worker
