#include "services/gpu-worker/experts/simulation/early_router.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace hearth::worker {

EarlyRouter::EarlyRouter(const ModelConfig& config)
    : width_(static_cast<size_t>(config.hidden_size)),
      n_experts_(static_cast<size_t>(config.n_experts)),
      top_k_(static_cast<size_t>(config.experts_per_token)),
      eps_(config.rms_norm_eps),
      layers_(static_cast<size_t>(config.n_layers)),
      normed_(width_),
      by_logit_(n_experts_) {}

absl::StatusOr<std::unique_ptr<EarlyRouter>> EarlyRouter::Read(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  auto router = std::unique_ptr<EarlyRouter>(new EarlyRouter(config));
  for (int i = 1; i < config.n_layers; ++i) {
    if (!config.layers[static_cast<size_t>(i)].has_experts) continue;
    Layer& layer = router->layers_[static_cast<size_t>(i)];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    HEARTH_ASSIGN_OR_RETURN(layer.norm,
                            checkpoint.Vector(prefix + "post_attention_layernorm.weight"));
    HEARTH_ASSIGN_OR_RETURN(const OwnedLinear linear, checkpoint.Linear(prefix + "mlp.gate"));
    layer.weights.resize(router->n_experts_ * router->width_);
    for (size_t e = 0; e < router->n_experts_; ++e) {
      DequantizeRow(linear.ref, static_cast<int64_t>(e),
                    std::span(layer.weights).subspan(e * router->width_, router->width_));
    }
  }
  return router;
}

bool EarlyRouter::HasLayer(int layer) const {
  return layer >= 0 && layer < static_cast<int>(layers_.size()) &&
         !layers_[static_cast<size_t>(layer)].weights.empty();
}

void EarlyRouter::Choose(int layer, int rows, const float* hidden, std::vector<int32_t>* ids) {
  const Layer& chosen = layers_[static_cast<size_t>(layer)];
  for (int row = 0; row < rows; ++row, hidden += width_) {
    const double squares = std::inner_product(hidden, hidden + width_, hidden, 0.0);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(width_) + eps_);
    for (size_t i = 0; i < width_; ++i) {
      normed_[i] = static_cast<float>(hidden[i] * scale) * (1 + chosen.norm[i]);
    }
    for (size_t e = 0; e < n_experts_; ++e) {
      const float* weights = chosen.weights.data() + e * width_;
      by_logit_[e] = {-std::inner_product(normed_.begin(), normed_.end(), weights, 0.0F),
                      static_cast<int32_t>(e)};
    }
    std::partial_sort(by_logit_.begin(), by_logit_.begin() + static_cast<int64_t>(top_k_),
                      by_logit_.end());
    for (size_t k = 0; k < top_k_; ++k) ids->push_back(by_logit_[k].second);
  }
}

}  // namespace hearth::worker
