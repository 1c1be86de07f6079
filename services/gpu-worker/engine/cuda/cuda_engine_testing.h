// What the tests of the CUDA engine share: experts that can be taken away, slowed down and
// replaced, and sequences that are read and continued.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/experts/expert_tier.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"

namespace hearth::worker {

// All experts of a checkpoint, packed in tiles side by side as in a segment.
class PackedExperts final : public ExpertSource {
 public:
  explicit PackedExperts(const Checkpoint* checkpoint);

  absl::StatusOr<ExpertRef> Get(int layer, int expert) override;
  std::span<const std::byte> Packed(int layer, int expert) override;
  std::span<const std::byte> Memory() override { return *memory_; }
  uint64_t generation() override { return generation_; }
  std::shared_ptr<const void> Hold() override { return memory_; }
  void CountUse(int layer, int expert) override { ++uses_[{layer, expert}]; }

  // Other experts in other memory: each is the former next one of its layer.
  void Replace();
  // Uses since the last call, those that were asked for and those that were counted.
  std::map<std::pair<int, int>, int> TakeUses() { return std::exchange(uses_, {}); }

  std::function<void()> on_get;     // called by each Get
  std::function<void()> on_packed;  // called by each Packed of an engine
  std::set<std::pair<int, int>> not_here;
  absl::Status refusal = absl::UnavailableError("the store is loading this expert");  // of those

 private:
  void PackAll();
  std::span<const std::byte> Find(int layer, int expert) const;

  const Checkpoint& checkpoint_;
  CheckpointExperts plain_;
  int shift_ = 0;
  uint64_t stride_ = 0, bytes_ = 0;
  std::shared_ptr<std::vector<std::byte>> memory_;
  uint64_t generation_ = 0;
  std::map<std::pair<int, int>, int> uses_;
};

class CudaEngineTest : public CudaTest {
 protected:
  // A folder of the repository.
  void Open(const std::string& folder);
  // 4 GiB of the card, 4 threads and all experts in slots, unless `options` says otherwise.
  std::unique_ptr<Engine> Make(EngineOptions options);
  std::unique_ptr<Engine> Make() { return Make({}); }

  int vocabulary() const { return checkpoint_->config().vocab_size; }
  // Some ids, different for each seed.
  std::vector<int32_t> Ids(int n, int seed) const;

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<PackedExperts> experts_;
};

using Logits = std::vector<float>;

// One step of one sequence: its last logits.
absl::StatusOr<Logits> Feed(Engine& engine, SequenceState& state, std::span<const int32_t> ids);
// A prompt in pieces of `chunk`, then `n_more` tokens: those of `forced`, or the likeliest ones.
struct Answer {
  std::vector<int32_t> tokens;  // n_more
  Logits logits;                // [1 + n_more, V]: after the prompt and after each token
};
absl::StatusOr<Answer> Continue(Engine& engine, std::span<const int32_t> prompt, int n_more,
                                size_t chunk = 4096, const std::vector<int32_t>& forced = {});
int32_t Likeliest(std::span<const float> logits);
// Root mean square of the differences, in standard deviations of `want`. Sizes must agree.
double RelativeRms(const Logits& got, const Logits& want);
// What `hearth verify` asks of a fast backend's logits.
inline constexpr double kFastRms = 0.15;

}  // namespace hearth::worker
