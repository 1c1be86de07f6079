// Writes safetensors files and 4-bit groups as bitsandbytes stores them, for tests of everything
// that reads them.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint/safetensors.h"

namespace hearth::testing {

struct RawTensor {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<uint64_t> shape;
  std::string bytes;
};

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

// A whole file, tensors in the order given. The header is padded so that data begin at a multiple
// of 8.
std::string SafetensorsBytes(std::span<const RawTensor> tensors,
                             const std::map<std::string, std::string>& metadata = {
                                 {"format", "pt"}});
// A file of this header text and data, whatever they say.
std::string SafetensorsBytes(const std::string& header, const std::string& data);

}  // namespace hearth::testing
