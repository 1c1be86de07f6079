// The JSON header of a safetensors file, read in one pass with memory bounded by its length. Used
// by SafetensorsFile.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/safetensors.h"

namespace hearth {

// What the header says, names and shapes in two arenas; offsets are not yet compared with the file.
struct SafetensorsHeader {
  struct Entry {
    uint64_t name_begin = 0;  // in names
    uint32_t name_size = 0;
    uint32_t rank = 0;
    uint64_t dims_begin = 0;  // in dims
    uint64_t begin = 0;       // data_offsets
    uint64_t end = 0;
    Dtype dtype = Dtype::kU8;
  };
  std::vector<char> names;
  std::vector<uint64_t> dims;
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  std::string_view NameOf(const Entry& entry) const {
    return {names.data() + entry.name_begin, entry.name_size};
  }
};

// InvalidArgument names the tensor and the field that is wrong, or the byte where the JSON is. Two
// tensors of one name are left for the caller to find.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text);

}  // namespace hearth
