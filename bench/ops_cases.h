// One op at one shape, timed: what ./dev bench ops runs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "services/gpu-worker/ops/kernels.h"
#include "services/gpu-worker/ops/parallel.h"

namespace hearth::bench {

struct OpCase {
  std::string op;
  std::string shape;
  double bytes = 0;         // that one run must move from memory
  double products = 0;      // multiplications (with their addition) of one run
  bool is_integer = false;  // products of int8, else of float32
  std::function<void()> run;
  std::function<void()> prepare = {};  // before each run, not timed; may be empty
};

// The shapes of Qwen3-Next-80B-A3B. Weights are many enough that no run finds its own in a cache.
// `parallel` and `kernels` are borrowed by the cases.
std::vector<OpCase> MakeOpCases(worker::Parallel& parallel, const worker::Kernels& kernels);

}  // namespace hearth::bench
