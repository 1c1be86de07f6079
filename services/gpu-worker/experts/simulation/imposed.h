// A trace without a model: what the benchmark's imposed routing (benchmark/routing.h) would give.
#pragma once

#include <cstdint>

#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/experts/simulation/trace.h"

namespace hearth::worker {

struct ImposedShape {
  int n_layers = 48;
  int n_experts = 512;
  int top_k = 10;
  int n_tokens = 4000;
  int n_sequences = 1;  // that decode together
};

// Every layer has experts; `routing` must be made for a model of this shape.
RoutingTrace TraceOf(RoutingOverride& routing, const ImposedShape& shape);

}  // namespace hearth::worker
