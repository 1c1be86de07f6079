// What a layer's router would choose one layer early: on the hidden state that leaves the layer
// before, without what its own mixer adds. For recording predictions beside a trace.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace hearth::worker {

class EarlyRouter {
 public:
  // Reads the routers and the norms before them.
  static absl::StatusOr<std::unique_ptr<EarlyRouter>> Read(const Checkpoint& checkpoint);

  // Whether layer `layer` has a router and a layer before it.
  bool HasLayer(int layer) const;
  // Appends the top_k ids for every row of `hidden` [rows, D], the output of layer `layer` - 1.
  void Choose(int layer, int rows, const float* hidden, std::vector<int32_t>* ids);

 private:
  struct Layer {
    std::vector<float> norm;     // [D], 1 is added
    std::vector<float> weights;  // [E, D]; empty: no router
  };
  explicit EarlyRouter(const ModelConfig& config);

  const size_t width_, n_experts_, top_k_;
  const double eps_;
  std::vector<Layer> layers_;
  std::vector<float> normed_;                        // of a row
  std::vector<std::pair<float, int32_t>> by_logit_;  // of a row
};

}  // namespace hearth::worker
