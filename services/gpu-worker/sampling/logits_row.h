// One row of logits as an engine gives it (engine/engine.h): whole, or its largest with the whole
// to be had from a device. Used by the scheduler, which makes it, and by the sampler.
#pragma once

#include <functional>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "services/gpu-worker/sampling/top_logits.h"

namespace hearth::worker {

class LogitsRow {
 public:
  using Fetch = std::function<absl::StatusOr<std::span<const float>>()>;

  // Borrow their arguments; what `fetch` gives lives until it is called again for any row.
  explicit LogitsRow(std::span<const float> whole) : whole_(whole) {}
  LogitsRow(const TopLogitsRow* top, int vocabulary, Fetch fetch)
      : top_(top), vocabulary_(vocabulary), fetch_(std::move(fetch)) {}

  // Null where the whole row is at hand anyway.
  const TopLogitsRow* top() const { return top_; }
  int vocabulary() const { return vocabulary_; }
  absl::StatusOr<std::span<const float>> Whole() const {
    if (top_ == nullptr) return whole_;
    return fetch_();
  }

 private:
  std::span<const float> whole_;
  const TopLogitsRow* top_ = nullptr;
  int vocabulary_ = 0;
  Fetch fetch_;
};

}  // namespace hearth::worker
