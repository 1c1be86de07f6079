#include "common/testing/compare.h"

#include <cmath>
#include <limits>

namespace hearth::testing {

::testing::AssertionResult AllClose(std::span<const float> got, std::span<const float> want,
                                    Tolerance tolerance) {
  if (want.empty() || got.size() != want.size()) {
    return ::testing::AssertionFailure() << "got " << got.size() << " values, want " << want.size();
  }
  size_t n_off = 0, worst = 0;
  double worst_excess = -1;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    const double allowed = tolerance.abs + tolerance.rel * std::abs(want[i]);
    if (error <= allowed) continue;  // never true for a NaN
    const double excess = std::isnan(error) ? HUGE_VAL : error - allowed;
    if (excess > worst_excess) worst = i, worst_excess = excess;
    ++n_off;
  }
  if (n_off == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << n_off << " of " << want.size() << " off, the worst at " << worst << ": got "
         << got[worst] << ", want " << want[worst];
}

Tolerance DotTolerance(int k, double eps, double typical_product) {
  constexpr double kSlack = 4;
  const double float_eps = std::numeric_limits<float>::epsilon();
  return {.abs = kSlack * std::sqrt(k) * typical_product * (2 * eps + float_eps), .rel = 0};
}

}  // namespace hearth::testing
