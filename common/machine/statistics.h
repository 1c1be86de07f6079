// Summaries of repeated measurements.
#pragma once

#include <span>
#include <vector>

#include "common/base/json.h"

namespace hearth {

struct Spread {
  double median = 0, min = 0, max = 0;
};
// Zeros for no values. The median of an even number is the mean of the middle two.
Spread Summarise(std::span<const double> values);
json::object ToJson(const Spread& spread);  // {"median", "min", "max"}

// The smallest value that at least `share` of the values do not exceed (nearest rank), share in
// (0, 1]; 0 for no values.
double Percentile(std::span<const double> values, double share);

}  // namespace hearth
