// JSON from standard input, JSON to standard output: for the commands that other programs call.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/json.h"

namespace hearth::cli {

// The JSON array on standard input (to its end, at most 1 GiB). InvalidArgument for anything else.
absl::StatusOr<json::array> ReadArrayFromStdin(int max_depth);

// One line. Unavailable when standard output cannot be written.
absl::Status WriteLineToStdout(const json::value& value);

}  // namespace hearth::cli
