// Recorded routing, replayed: LoadTrace of routing.h.
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/safetensors.h"
#include "services/gpu-worker/benchmark/routing.h"

namespace hearth::worker {
namespace {

constexpr int64_t kItemStride = 997;  // how far apart in the trace two items of a step read

struct TraceLayer {
  int64_t n_tokens = 0;
  std::vector<int32_t> ids;  // [T, K]
};

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

absl::StatusOr<std::vector<int32_t>> ReadIds(const TensorView& tensor) {
  if (tensor.dtype != Dtype::kF32) {
    HEARTH_ASSIGN_OR_RETURN(const std::vector<int64_t> wide, ToIntegers(tensor));
    std::vector<int32_t> ids;
    for (const int64_t id : wide) ids.push_back(id < 0 || id > INT32_MAX ? -1 : int32_t(id));
    return ids;
  }
  HEARTH_ASSIGN_OR_RETURN(const std::vector<float> values, ToFloats(tensor));
  std::vector<int32_t> ids;
  for (const float value : values) {
    const bool is_id = value >= 0 && value < 65536 && value == std::floor(value);
    ids.push_back(is_id ? static_cast<int32_t>(value) : -1);
  }
  return ids;
}

absl::Status CheckIds(const std::vector<int32_t>& ids, const ModelConfig& config) {
  const auto top_k = static_cast<size_t>(config.experts_per_token);
  for (size_t row = 0; row < ids.size(); row += top_k) {
    const std::set<int32_t> different(ids.begin() + static_cast<int64_t>(row),
                                      ids.begin() + static_cast<int64_t>(row + top_k));
    if (different.size() == top_k && *different.begin() >= 0 &&
        *different.rbegin() < config.n_experts) {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat("token ", row / top_k, " does not choose ",
                                                   top_k, " different experts below ",
                                                   config.n_experts));
  }
  return absl::OkStatus();
}

absl::StatusOr<TraceLayer> ReadLayer(const SafetensorsFile& file, int layer,
                                     const ModelConfig& config) {
  const std::string name = absl::StrCat("layers.", layer, ".router.topk_ids");
  const TensorView* tensor = file.Find(name);
  const std::string where = absl::StrCat(file.label(), ": ", name);
  if (tensor == nullptr) return absl::NotFoundError(where + " is missing");
  if (tensor->shape.size() != 2 || tensor->shape[0] < 1 ||
      tensor->shape[1] != static_cast<uint64_t>(config.experts_per_token)) {
    return absl::InvalidArgumentError(absl::StrCat(where, " has the shape ",
                                                   ShapeText(tensor->shape), ", must be [tokens, ",
                                                   config.experts_per_token, "]"));
  }
  auto ids = ReadIds(*tensor);
  if (!ids.ok()) return Annotate(ids.status(), where);
  HEARTH_RETURN_IF_ERROR(Annotate(CheckIds(*ids, config), where));
  return TraceLayer{static_cast<int64_t>(tensor->shape[0]), *std::move(ids)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<RoutingOverride>> LoadTrace(const std::filesystem::path& file,
                                                           const ModelConfig& config) {
  HEARTH_ASSIGN_OR_RETURN(const SafetensorsFile opened, SafetensorsFile::Open(file));
  std::vector<TraceLayer> layers(static_cast<size_t>(config.n_layers));
  for (int i = 0; i < config.n_layers; ++i) {
    if (!config.layers[static_cast<size_t>(i)].has_experts) continue;
    HEARTH_ASSIGN_OR_RETURN(layers[static_cast<size_t>(i)], ReadLayer(opened, i, config));
  }
  return std::make_unique<TraceRouting>(std::move(layers));
}

}  // namespace hearth::worker
