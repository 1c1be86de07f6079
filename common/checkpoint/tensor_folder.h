// All tensors of a checkpoint folder: model.safetensors, or the shards that
// model.safetensors.index.json names. Used by Checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/safetensors.h"

namespace hearth {

// A tensor and the file it lies in.
struct TensorRef {
  const TensorView* view = nullptr;
  const SafetensorsFile* file = nullptr;

  // "FILE: tensor NAME: what"
  absl::Status Error(std::string_view what) const;
};

class TensorFolder {
 public:
  static absl::StatusOr<TensorFolder> Open(const std::filesystem::path& folder);

  // A null view where there is none.
  TensorRef Find(std::string_view name) const;
  // In order of file names.
  const std::vector<std::unique_ptr<SafetensorsFile>>& shards() const { return shards_; }
  uint64_t n_tensors() const { return n_tensors_; }

 private:
  absl::Status OpenSharded(const std::filesystem::path& folder, const std::filesystem::path& index);
  void AddAll(const SafetensorsFile& file);

  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  absl::flat_hash_map<std::string_view, TensorRef> by_name_;  // keys lie in the shards
  uint64_t n_tensors_ = 0;
};

}  // namespace hearth
