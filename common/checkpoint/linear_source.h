// Where one linear lies in the files, plain or 4-bit, whole or a slice of a fused tensor; and how
// it is read. Used by Checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/tensor_folder.h"

namespace hearth {

struct LinearSource {
  uint64_t out = 0;
  uint64_t in = 0;
  uint64_t first_element = 0;  // of the stored tensor, where this linear begins
  WeightKind kind = WeightKind::kF32;
  TensorRef weight;
  // The rest of a 4-bit group (kBlock4). The last three are filled by FinishGroup.
  TensorRef state, levels, absmax, nested_absmax, nested_levels;
  bool is_fp4 = false;
  int block_size = 0;
  int nested_block_size = 0;
  float nested_offset = 0;
};

// Finds `weight_name` (and its group) and checks what the headers tell: dtypes and sizes, against
// the shape that the config asks for. Names of absent tensors are added to `missing`, and every
// tensor used to `used`.
absl::StatusOr<LinearSource> FindGroup(const TensorFolder& folder, const std::string& weight_name,
                                       const std::vector<uint64_t>& shape,
                                       std::vector<std::string>& missing,
                                       std::vector<const TensorView*>& used);

// Reads the quantization state of a 4-bit group and checks every member's size against it; nothing
// to do for others. `shape` as in FindGroup; source.out, in and first_element are set: a slice must
// begin at a block's first element.
absl::Status FinishGroup(LinearSource& source, const std::vector<uint64_t>& shape);

// The shape touches none of the weights and scales, which may still be on the disk.
absl::StatusOr<LinearRef> ReadLinearShape(const LinearSource& source);
absl::StatusOr<OwnedLinear> ReadLinear(const LinearSource& source);

}  // namespace hearth
