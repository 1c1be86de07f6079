#include "services/gpu-worker/experts/simulation/imposed.h"

namespace hearth::worker {

RoutingTrace TraceOf(RoutingOverride& routing, const ImposedShape& shape) {
  RoutingTrace trace;
  trace.n_layers = shape.n_layers;
  trace.n_experts = shape.n_experts;
  trace.top_k = shape.top_k;
  trace.ids.resize(static_cast<size_t>(shape.n_layers));
  std::vector<int32_t> ids(static_cast<size_t>(shape.n_sequences) *
                           static_cast<size_t>(shape.top_k));
  for (int step = 0; step < shape.n_tokens; ++step) {
    std::vector<RoutingOverride::Rows> rows;
    for (int i = 0; i < shape.n_sequences; ++i) {
      rows.push_back({i, i + 1, step});
      trace.tokens.push_back({step, i, false});
    }
    for (int layer = 0; layer < shape.n_layers; ++layer) {
      routing.Impose(layer, rows, shape.top_k, ids);
      auto& all = trace.ids[static_cast<size_t>(layer)];
      all.insert(all.end(), ids.begin(), ids.end());
    }
  }
  return trace;
}

}  // namespace hearth::worker
