// How much each expert was used of late: counts that halve every half-life, for experts named by
// their key (layer * n_experts + expert). Used by the policies of the expert cache.
//
// If a popularity fades as fast as the counts do, an expert's heat is also the number of uses that
// are still to be expected of it: a rate of r uses a step adds up to r * half_life / ln 2, and so
// does the fading rate from now on. The policies weigh heats against the cost of a copy therefore.
//
// Instead of shrinking all counts at every step, the unit in which new uses are counted grows;
// every 64 half-lives everything is divided by it. Add and Heat are O(1), Tick is too but for that.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/check.h"

namespace hearth::worker {

class ExpertHeat {
 public:
  // `half_life` in steps, > 0.
  ExpertHeat(int n_keys, double half_life) : raw_(static_cast<size_t>(n_keys), 0) {
    SetHalfLife(half_life);
  }

  // From now on; what was counted keeps its value of this moment.
  void SetHalfLife(double half_life) {
    HEARTH_CHECK(half_life > 0);
    half_life_ = half_life;
    growth_ = std::exp2(1 / half_life);
  }
  double half_life() const { return half_life_; }

  // A step passes.
  void Tick() {
    unit_ *= growth_;
    if (unit_ > kLargestUnit) Rescale();
  }

  void Add(int32_t key, double uses) {
    raw_[static_cast<size_t>(key)] += static_cast<float>(uses * unit_);
  }
  void RaiseTo(int32_t key, double uses) {
    float& raw = raw_[static_cast<size_t>(key)];
    raw = std::max(raw, static_cast<float>(uses * unit_));
  }

  // In uses.
  double Heat(int32_t key) const { return raw(key) / unit_; }
  // In units: for comparing many. A use of this step is worth unit().
  float raw(int32_t key) const { return raw_[static_cast<size_t>(key)]; }
  std::span<const float> raws() const { return raw_; }  // [key]
  double unit() const { return unit_; }
  uint64_t epoch() const { return epoch_; }  // changes where the raw values shrink

  // What `uses` in `n_tokens` consecutive steps would leave, were they spread evenly.
  double HeatOfRate(double uses, double n_tokens) const {
    return uses / n_tokens * half_life_ / kLn2 * -std::expm1(-kLn2 * n_tokens / half_life_);
  }

 private:
  static constexpr double kLargestUnit = 0x1p64;
  static constexpr double kLn2 = 0.6931471805599453;

  void Rescale() {
    for (float& raw : raw_) raw = static_cast<float>(raw / unit_);
    unit_ = 1;
    ++epoch_;
  }

  std::vector<float> raw_;
  double half_life_ = 1, growth_ = 2, unit_ = 1;
  uint64_t epoch_ = 0;
};

}  // namespace hearth::worker
