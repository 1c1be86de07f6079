// The bytes of a safetensors file: for recorded traces, and for tests of everything that reads such
// files.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint/safetensors.h"

namespace hearth {

struct RawTensor {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<uint64_t> shape;
  std::string bytes;
};

// A whole file, tensors in the order given. The header is padded so that data begin at a multiple
// of 8.
std::string SafetensorsBytes(std::span<const RawTensor> tensors,
                             const std::map<std::string, std::string>& metadata = {
                                 {"format", "pt"}});
// A file of this header text and data, whatever they say.
std::string SafetensorsBytes(const std::string& header, const std::string& data);

}  // namespace hearth
