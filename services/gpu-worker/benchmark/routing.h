// Where a benchmark's tokens are routed: as the router says (random weights: flat), to experts with
// a stated locality, or as a recorded trace has it.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/checkpoint/config.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

struct BenchmarkRouting {
  std::unique_ptr<RoutingOverride> routing;  // null: the router chooses
  std::string description;                   // what was used, for the report
};

// "flat"; "locality" or "locality:WORKING_SET"; "shared" or "shared:WORKING_SET"; "trace:FILE".
absl::StatusOr<BenchmarkRouting> MakeRouting(std::string_view text, const ModelConfig& config,
                                             uint64_t seed);

// Each layer of each sequence has a working set of experts (or, shared, each layer, as where all
// sequences speak of the same). Every choice of a token falls into it
// with probability kLocalShare and anywhere otherwise, all places of a token on different experts;
// after each token (of a shared set, of the first sequence) one member of the set is replaced by a
// random expert with probability kDriftShare.
inline constexpr double kLocalShare = 0.8;
inline constexpr double kDriftShare = 0.1;
int DefaultWorkingSet(const ModelConfig& config);  // 80 of 512
std::unique_ptr<RoutingOverride> MakeLocalRouting(const ModelConfig& config, int working_set,
                                                  uint64_t seed, bool is_shared = false);

// A trace is a safetensors file with layers.I.router.topk_ids [T, K] for every layer with experts:
// what `hearth verify` takes for a reference has them. The token at position p of the step's item i
// uses row (p + 997 i) mod T.
absl::StatusOr<std::unique_ptr<RoutingOverride>> LoadTrace(const std::filesystem::path& file,
                                                           const ModelConfig& config);

// Share of one layer's choices that an LRU cache of `slots` experts would hold, over `n_tokens`
// tokens of one sequence, after as many for it to fill.
double LruHitRate(RoutingOverride& routing, int layer, int top_k, int slots, int n_tokens);

}  // namespace hearth::worker
