// How often each expert was used, over all runs: workers report counts, the expert cache is warmed
// by them. Kept in a file of the run directory. Thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace hearth::store {

struct UseCount {
  uint32_t layer = 0;
  uint32_t expert = 0;
  uint64_t count = 0;
};

// What the counts are about.
struct ProfileShape {
  std::string fingerprint;
  int n_experts = 0;  // a layer
  int experts_per_token = 0;
  std::vector<bool> layer_has_experts;  // one a layer
};

class UsageProfile {
 public:
  // Reads `file` if it is there. An error says why an existing file was not taken (counting starts
  // from zero and works all the same): another checkpoint's, not JSON, ids out of range.
  absl::Status Open(std::filesystem::path file, ProfileShape shape);

  // Adds all counts, or none: InvalidArgument names the layer or expert that the model does not
  // have. Unavailable before Open. Sums stay at their maximum instead of overflowing.
  absl::Status Add(std::span<const UseCount> uses);

  // At most `top_n` experts a layer (0: all with a count), by layer, then by falling count, ties by
  // lower id.
  std::vector<UseCount> Top(uint32_t top_n) const;
  // Tokens that the counts stand for: the largest sum of a layer divided by experts_per_token.
  uint64_t Tokens() const;
  std::string fingerprint() const;

  // Writes the file, atomically, if anything was added since the last time.
  absl::Status SaveIfChanged();

 private:
  absl::Status CheckIds(const UseCount& use) const;
  absl::Status Load();
  std::string Serialize() const;

  mutable std::mutex mutex_;
  std::filesystem::path file_;  // guarded by mutex_, as all below; empty before Open
  ProfileShape shape_;
  std::vector<uint64_t> counts_;  // [n_layers * n_experts]
  bool has_changed_ = false;
};

}  // namespace hearth::store
