// A reference file's tensors, by name: what `hearth verify` compares with.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hearth::worker {

using Tensors = std::map<std::string, std::vector<float>>;

struct Reference {
  std::vector<int32_t> input_ids, decode_ids;
  Tensors floats;
  std::vector<std::string> skipped;
};

// InvalidArgument without integer input_ids.
absl::StatusOr<Reference> ReadReference(const std::filesystem::path& path);

}  // namespace hearth::worker
