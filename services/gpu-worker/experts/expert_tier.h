// The expert cache as others see it: metrics, gRPC, the command line. An engine with a cache gives
// one; those of the CPU have none. TierBoard is the meeting place of the engine's thread with them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "services/gpu-worker/experts/expert_cache.h"

namespace hearth::worker {

// What lies where: "vram" or "ram"; "dense weights", "expert cache", "KV pages", ...
struct TierPart {
  std::string tier, component;
  uint64_t bytes = 0;
};

// What experts have cost since the start.
struct TierWork {
  uint64_t pcie_bytes = 0;      // copied to the device
  uint64_t in_place_bytes = 0;  // read by the device where they lie in RAM
  uint64_t cpu_bytes = 0;       // computed by CPU threads
  double cpu_seconds = 0;       // that these took
  double awaited_seconds = 0;   // that the device waited for them, in decode steps
  double zero_copy_share = 0;   // of the misses of a step of one row: what the device reads now
};

struct TierStatistics {
  CacheStatistics cache;
  uint64_t slot_bytes = 0;  // of one expert
  TierWork work;
  std::vector<TierPart> parts;
};

class ExpertTier {
 public:
  virtual ~ExpertTier() = default;
  // Any thread; of the last step that ended.
  virtual TierStatistics Statistics() const = 0;
  // Any thread; in force from the next admissions on. As MakePolicy.
  virtual absl::Status SetPolicy(std::string_view name) = 0;
  // Any thread: counts for the policy "profile", used when it is chosen next.
  virtual void SetProfile(std::vector<ExpertUses> profile) = 0;
  // Any thread: rows of every expert since the call before, for the store's profile. What the next
  // step collects is for the next call: the first gives nothing.
  virtual std::vector<ExpertUses> TakeUses() = 0;
};

class TierBoard final : public ExpertTier {
 public:
  TierBoard(CacheShape shape, PolicyOptions options, uint64_t slot_bytes,
            std::vector<TierPart> parts);

  TierStatistics Statistics() const override;
  absl::Status SetPolicy(std::string_view name) override;
  void SetProfile(std::vector<ExpertUses> profile) override;
  std::vector<ExpertUses> TakeUses() override;

  // Any thread: what SetProfile gave last. For the first filling (ExpertCache::PlanFilling).
  std::vector<ExpertUses> profile() const;
  // Any thread: "profile" comes into force with the first counts, unless another policy is asked
  // for before.
  void AwaitProfile();

  // Engine's thread, after each step: gives the cache the policy that was asked for and shows its
  // state.
  void Sync(ExpertCache* cache, const TierWork& work);

 private:
  const CacheShape shape_;
  mutable std::mutex mutex_;
  PolicyOptions options_;                   // guarded by mutex_, as all below
  std::unique_ptr<CachePolicy> asked_for_;  // null: no change
  bool awaits_profile_ = false;
  TierStatistics shown_;
  std::vector<ExpertUses> uses_;
  bool wants_uses_ = false;
};

}  // namespace hearth::worker
