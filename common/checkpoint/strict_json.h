// JSON as files from strangers need it: Boost.JSON silently keeps the last of two equal keys, here
// that is an error. Used for config.json, the shard index and quantization states.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "common/base/json.h"

namespace hearth {

// Like ParseJson, and InvalidArgument where an object at any depth has a key twice; the result must
// be an object.
absl::StatusOr<json::object> ParseStrictObject(std::string_view text, int max_depth);

}  // namespace hearth
