// The largest logits of a row, as a device picks them out (ops/cuda/top_logits_cuda.h), so that 2
// KB of a row are copied and not all of it. Plain: for .cu files too.
#pragma once

#include <cstdint>

namespace hearth::worker {

inline constexpr int kTopLogits = 256;

struct TopLogitsRow {
  // kBroken: a logit is NaN or +infinity, or none is finite. kCrowded: too many logits share the
  // last place's neighbourhood for the device to sort. Of such a row nothing else counts.
  enum Flags : int32_t { kFine = 0, kBroken = 1, kCrowded = 2 };
  int32_t flags;
  int32_t n;          // how many follow; a device gives min(kTopLogits, vocabulary)
  float temperature;  // of weight_sum; 1 where the row's own is 0
  float weight_sum;  // sum of exp((logit - largest) / temperature) over all, within kWeightSumError
  int32_t ids[kTopLogits];   // by falling logit, ties by rising id
  float logits[kTopLogits];  // as they are in the row
};

// Of weight_sum, relative: float32 exponentials of float32 arguments, of which those below -40
// weigh nothing, and their sums.
inline constexpr double kWeightSumError = 2e-5;

}  // namespace hearth::worker
