// Comparison of float tensors in tests: says how many values are off and which is the worst. NaN is
// always off.
#pragma once

#include <gtest/gtest.h>

#include <span>

namespace hearth::testing {

struct Tolerance {
  double abs = 0;
  double rel = 0;
};

// Each |got - want| <= abs + rel * |want|. Empty `want` and different sizes fail.
::testing::AssertionResult AllClose(std::span<const float> got, std::span<const float> want,
                                    Tolerance tolerance);

// Error bound of a dot product of `k` products of the given typical size whose inputs were rounded
// to `eps` and that was summed in float: each product carries 2 eps, and the sum grows like sqrt(k)
// for inputs of random sign.
Tolerance DotTolerance(int k, double eps, double typical_product);

}  // namespace hearth::testing
