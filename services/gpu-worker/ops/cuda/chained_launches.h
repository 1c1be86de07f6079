// Whether kernels may begin before those in front of them have ended (launch.cuh). For comparisons:
// set it before a step is captured. Plain.
#pragma once

namespace hearth::worker {

inline bool& ChainedLaunches() {
  static bool chained = true;
  return chained;
}

}  // namespace hearth::worker
