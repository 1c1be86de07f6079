// The JSON text that bitsandbytes stores with each 4-bit linear. Used by Checkpoint.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace hearth {

struct QuantState {
  bool is_fp4 = false;  // else NF4
  int block_size = 64;  // elements that share an absmax
  std::vector<uint64_t> shape;
  // Double quantization: absmax = nested level * nested_absmax[i / nested_block_size] +
  // nested_offset.
  bool has_nested = false;
  int nested_block_size = 256;
  float nested_offset = 0;
};

// InvalidArgument names the field.
absl::StatusOr<QuantState> ParseQuantState(std::string_view text);

}  // namespace hearth
