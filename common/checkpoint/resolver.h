// Finds the tensors that a model needs and checks them. Used by Checkpoint, once for the model and
// once for its multi-token prediction head.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "common/checkpoint/linear_source.h"
#include "common/checkpoint/model_tensors.h"
#include "common/checkpoint/tensor_folder.h"

namespace hearth {

// What was found. Linears by module name, vectors by tensor name.
struct Resolved {
  absl::flat_hash_map<std::string, LinearSource> linears;
  absl::flat_hash_map<std::string, TensorRef> vectors;
  std::vector<const TensorView*> used;
  std::vector<std::string> missing;
  bool stopped_early = false;  // more are missing than were looked for
  // Matrices of experts by what keeps them.
  int64_t n_nf4 = 0, n_fp4 = 0, n_plain = 0;
};

// Malformed tensors are errors; absent ones are listed in `missing`, and nothing 4-bit is then
// looked into.
absl::StatusOr<Resolved> Resolve(const TensorFolder& folder, const ModelConfig& config,
                                 const ModelTensors& tensors);

}  // namespace hearth
