// Sets a benchmark beside an older one, test by test.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/json.h"

namespace hearth::worker {

struct TestChange {
  std::string name;              // "decode:128@0 batch 1 threads 2"
  double before = 0, after = 0;  // tokens a second, medians
  // The median fell by more than the threshold, and no repetition was as fast as the slowest
  // before: not a machine's mood.
  bool is_slower = false;
};

struct Comparison {
  std::vector<TestChange> changes;
  std::vector<std::string> unmatched;  // tests that only one of the two has
  std::vector<std::string> warnings;   // another machine, model, routing or kernels
  bool is_slower() const;
};

// Both as `hearth benchmark --json` prints them. InvalidArgument names what an object lacks.
absl::StatusOr<Comparison> CompareReports(const json::value& before, const json::value& after,
                                          double threshold);
json::object ToJson(const Comparison& comparison);
std::string ToText(const Comparison& comparison);

}  // namespace hearth::worker
