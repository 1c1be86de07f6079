// Recorded routing, replayed: LoadTrace of routing.h.
#include "services/gpu-worker/experts/simulation/trace.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/safetensors.h"
#include "services/gpu-worker/benchmark/routing.h"

namespace hearth::worker {
namespace {

constexpr int64_t kItemStride = 997;  // how far apart in the trace two items of a step read

class TraceRouting final : public RoutingOverride {
 public:
  explicit TraceRouting(std::vector<TraceLayer> layers) : layers_(std::move(layers)) {}

  void Impose(int layer, std::span<const Rows> items, int top_k, std::span<int32_t> ids) override {
    const TraceLayer& trace = layers_[static_cast<size_t>(layer)];
    for (size_t i = 0; i < items.size(); ++i) {
      for (int row = items[i].begin; row < items[i].end; ++row) {
        const int64_t position = items[i].first_position + row - items[i].begin;
        const int64_t from =
            (position + kItemStride * static_cast<int64_t>(i)) % trace.n_tokens * top_k;
        std::copy_n(trace.ids.begin() + from, top_k, ids.begin() + int64_t{row} * top_k);
      }
    }
  }

 private:
  const std::vector<TraceLayer> layers_;  // of layers without experts: empty
};

}  // namespace

absl::StatusOr<std::unique_ptr<RoutingOverride>> LoadTrace(const std::filesystem::path& file,
                                                           const ModelConfig& config) {
  HEARTH_ASSIGN_OR_RETURN(const SafetensorsFile opened, SafetensorsFile::Open(file));
  std::vector<TraceLayer> layers(static_cast<size_t>(config.n_layers));
  for (int i = 0; i < config.n_layers; ++i) {
    if (!config.layers[static_cast<size_t>(i)].has_experts) continue;
    HEARTH_ASSIGN_OR_RETURN(layers[static_cast<size_t>(i)],
                            ReadTraceLayer(opened, absl::StrCat("layers.", i, ".router.topk_ids"),
                                           config.n_experts, config.experts_per_token));
  }
  return std::make_unique<TraceRouting>(std::move(layers));
}

}  // namespace hearth::worker
