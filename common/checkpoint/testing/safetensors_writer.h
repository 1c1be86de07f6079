// Tensors and 4-bit groups as bitsandbytes stores them, for tests of everything that reads
// safetensors files.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint/safetensors_bytes.h"

namespace hearth::testing {

// How a tensor's values are kept.
enum class Storage { kF32, kF16, kBF16, kNf4, kFp4 };

struct Block4Options {
  int block_size = 64;
  bool double_quantization = true;
};

// `values` under `name`: one tensor, or the group of six (four without double quantization) that
// makes a 4-bit linear.
void AddTensor(std::string name, std::vector<uint64_t> shape, std::span<const float> values,
               Storage storage, const Block4Options& options, std::vector<RawTensor>& tensors);

}  // namespace hearth::testing
