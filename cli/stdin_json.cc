#include "cli/stdin_json.h"

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::cli {
namespace {

constexpr size_t kMaxInput = size_t{1} << 30;

}  // namespace

absl::StatusOr<json::array> ReadArrayFromStdin(int max_depth) {
  std::string text;
  std::vector<char> buffer(1 << 16);
  while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), stdin)) {
    text.append(buffer.data(), n);
    if (text.size() > kMaxInput) {
      return absl::ResourceExhaustedError("standard input is longer than 1 GiB; send less at once");
    }
  }
  auto value = ParseJson(text, max_depth);
  if (!value.ok()) return Annotate(value.status(), "standard input");
  if (!value->is_array()) {
    return absl::InvalidArgumentError("standard input: expected a JSON array");
  }
  return std::move(value->get_array());
}

absl::Status WriteLineToStdout(const json::value& value) {
  const std::string text = SerializeJson(value) + "\n";
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return absl::UnavailableError("standard output cannot be written");
  }
  return absl::OkStatus();
}

}  // namespace hearth::cli
