// Writes a synthetic model as published checkpoints lie on disk: sharded safetensors with an index,
// the configurations and a tokenizer. Memory stays bounded by pieces of a few MiB a thread and the
// list of tensors, whatever the model's size. Used by `hearth make-model`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "absl/status/status.h"
#include "common/experts/memory_room.h"
#include "common/synthetic/model_spec.h"

namespace hearth {

struct MakeModelOptions {
  std::filesystem::path folder;  // made; must not hold anything yet
  int n_threads = 1;
  uint64_t max_shard_bytes = 5'000'000'000;
};

struct MakeModelProgress {
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
};

// AlreadyExists where the folder holds something; ResourceExhausted, before anything is written,
// where the disk has no room. Whatever fails later, the files begun are removed again. `progress`
// is called by one thread at a time.
absl::Status MakeModel(const SyntheticSpec& spec, const MakeModelOptions& options,
                       const std::function<void(const MakeModelProgress&)>& progress = nullptr);

// OK if `need` bytes fit into `room` with a little left for others.
absl::Status CheckDiskRoom(uint64_t need, const MemoryRoom& room);

}  // namespace hearth
