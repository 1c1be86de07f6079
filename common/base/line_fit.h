// A straight line through measurements that come one by one, by least squares.
#pragma once

#include <optional>

namespace hearth {

// Sums over points (x, y). Plain numbers, so that a GPU can add to them too.
struct LineSums {
  double n = 0, x = 0, xx = 0, y = 0, xy = 0;
};

inline void AddPoint(double x, double y, LineSums* sums) {
  sums->n += 1;
  sums->x += x;
  sums->xx += x * x;
  sums->y += y;
  sums->xy += x * y;
}

// to = to * keep + more: with keep < 1, old points are forgotten little by little.
inline void AddSums(const LineSums& more, double keep, LineSums* to) {
  to->n = to->n * keep + more.n;
  to->x = to->x * keep + more.x;
  to->xx = to->xx * keep + more.xx;
  to->y = to->y * keep + more.y;
  to->xy = to->xy * keep + more.xy;
}

struct Line {
  double start = 0;  // at x = 0
  double slope = 0;
};

// Nothing where the points' x differ by too little: less than a tenth from their mean.
inline std::optional<Line> FitLine(const LineSums& sums) {
  if (sums.n < 2) return std::nullopt;
  const double mean = sums.x / sums.n;
  const double variance = sums.xx / sums.n - mean * mean;
  if (variance <= 0.01 * mean * mean || variance <= 0) return std::nullopt;
  const double slope = (sums.xy / sums.n - mean * (sums.y / sums.n)) / variance;
  return Line{sums.y / sums.n - slope * mean, slope};
}

}  // namespace hearth
