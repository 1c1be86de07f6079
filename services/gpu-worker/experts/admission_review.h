// Judges admissions afterwards: over the half-life that followed, was the admitted expert used more
// often than the one it replaced, by what its copy costs? As long as the mean says no, the margin
// that a candidate must have over its victim is raised; it relaxes again with time. Where routing
// is flat, heat is noise, and without this the cache would copy experts for nothing all the time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "services/gpu-worker/experts/cache_policy.h"

namespace hearth::worker {

class AdmissionReview {
 public:
  AdmissionReview(const CacheShape& shape, const PolicyOptions& options)
      : n_experts_(shape.n_experts),
        cost_(options.admission_cost),
        window_(static_cast<uint64_t>(std::ceil(options.half_life_steps))),
        relaxation_(std::exp2(-1 / (kRelaxation * options.half_life_steps))),
        uses_(static_cast<size_t>(shape.n_keys()), 0),
        mean_gain_(options.admission_cost) {}

  // In uses: at least the cost of an admission.
  double margin() const { return cost_ * raise_; }

  void OnStep(std::span<const ExpertUse> uses) {
    for (const ExpertUse& use : uses) ++uses_[Index(use.layer * n_experts_ + use.expert)];
    ++step_;
    raise_ = std::max(1.0, raise_ * relaxation_);
    for (; !pending_.empty() && pending_.front().step + window_ <= step_; pending_.pop_front()) {
      Judge(pending_.front());
    }
  }

  // `victim`: the key whose slot it takes.
  void OnAdmission(int32_t key, int32_t victim) {
    if (pending_.size() == kMostPending) return;
    pending_.push_back({step_, key, victim, uses_[Index(key)], uses_[Index(victim)]});
  }

 private:
  struct Pending {
    uint64_t step;
    int32_t key, victim;
    uint32_t uses_of_key, uses_of_victim;  // at the admission
  };
  // Half of what a fading popularity will ever gain falls into the first half-life, and half of the
  // cost is a margin for choosing extremes (admission_cost.h).
  static constexpr double kPaid = 0.25;
  static constexpr double kMemory = 256;  // admissions that the mean gain is of
  static constexpr double kStep = 1.01;   // of the margin, for each that is judged
  static constexpr double kMostRaise = 2.5;
  static constexpr double kRelaxation = 16;  // half-lives until a raise has halved
  static constexpr size_t kMostPending = 1 << 15;

  static size_t Index(int32_t key) { return static_cast<size_t>(key); }

  void Judge(const Pending& p) {
    const double gain = static_cast<double>(uses_[Index(p.key)] - p.uses_of_key) -
                        static_cast<double>(uses_[Index(p.victim)] - p.uses_of_victim);
    mean_gain_ += (gain - mean_gain_) / kMemory;
    const bool pays = mean_gain_ >= kPaid * cost_;
    raise_ = std::clamp(pays ? raise_ / kStep : raise_ * kStep, 1.0, kMostRaise);
  }

  const int n_experts_;
  const double cost_;
  const uint64_t window_;
  const double relaxation_;
  std::vector<uint32_t> uses_;   // [key]: of steps; wraps, only differences count
  std::deque<Pending> pending_;  // by step
  uint64_t step_ = 0;
  double mean_gain_;
  double raise_ = 1;
};

}  // namespace hearth::worker
