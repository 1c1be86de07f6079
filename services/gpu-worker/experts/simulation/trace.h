// A recorded routing: which experts the tokens of a run used, in the order of the run. A
// safetensors file, written by `hearth profile --record` and read by `hearth cache simulate` and
// `hearth benchmark --routing trace:FILE`:
//   layers.I.router.topk_ids   [T, K]  U16   of every layer with experts (any integers or F32 are
//                                            read: what `hearth verify` takes has them)
//   layers.I.router.early_ids  [T, K]  U16   optional: what layer I's router would choose on the
//                                            hidden state that leaves layer I - 1
//   tokens.step, tokens.sequence  [T]  I32   optional: without them each token is a step of one
//   tokens.is_prompt              [T]  U8    sequence that decodes
// with n_layers, n_experts, model and fingerprint (of the experts) in the metadata.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/safetensors.h"
#include "services/gpu-worker/experts/cache_policy.h"

namespace hearth::worker {

// [T, K] ids of one layer.
struct TraceLayer {
  int64_t n_tokens = 0;
  std::vector<int32_t> ids;
};
// Each token's ids are different and below n_experts. NotFound where the tensor is absent.
absl::StatusOr<TraceLayer> ReadTraceLayer(const SafetensorsFile& file, std::string_view name,
                                          int n_experts, int top_k);

struct TraceToken {
  int32_t step = 0;  // never falls
  int32_t sequence = 0;
  bool is_prompt = false;
};

struct RoutingTrace {
  std::string model, fingerprint;
  int n_layers = 0;
  int n_experts = 0;
  int top_k = 0;
  std::vector<TraceToken> tokens;
  std::vector<std::vector<int32_t>> ids;        // [n_layers]: [T, K]; empty: no experts
  std::vector<std::vector<int32_t>> early_ids;  // [n_layers], or empty

  CacheShape Shape(int n_slots) const;
};

absl::StatusOr<RoutingTrace> ReadTrace(const std::filesystem::path& file);
absl::Status WriteTrace(const RoutingTrace& trace, const std::filesystem::path& file);

}  // namespace hearth::worker
