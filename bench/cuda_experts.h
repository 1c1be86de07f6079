// 512 experts of the 80B model in device memory, packed as slots, for the cases that read some.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "services/gpu-worker/ops/cuda/experts.h"

namespace hearth::bench {

inline constexpr int kExperts = 512, kTopK = 10, kExpertWidth = 2048, kExpertInner = 512;
inline constexpr double kExpertBytes = 3 * 17.0 / 32 * kExpertWidth * kExpertInner;

// Of random codes; made once, kept to the end.
struct BenchExperts {
  worker::ExpertsShape shape;  // without rows
  const uint8_t* slots;
  int64_t slot_bytes;
};
const BenchExperts& AllExperts();

// Tables of n_steps steps of n_rows rows with top_k places each: different experts of a row, out of
// n_experts that change from step to step.
std::shared_ptr<void> ExpertTables(int n_steps, int n_rows, int top_k, int n_experts);

}  // namespace hearth::bench
