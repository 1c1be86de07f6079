// The command line of hearth-expert-store.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/logging.h"

namespace hearth::store {

struct CommandLine {
  std::filesystem::path model;
  std::filesystem::path run_dir;
  std::filesystem::path segment;
  std::string listen;          // "unix:RUN/store.sock"
  std::string metrics_listen;  // empty: no metrics port
  int n_threads = 0;
  double load_rate_mb = 0;       // 0: no limit
  double verify_rate_mb = 1000;  // 0: no background verification
  double verify_interval_seconds = 3600;
  double grace_seconds = 5;
  bool remove_segment_on_exit = false;
  bool exact = false;  // plain layout, for the float32 backend
  LogLevel log_level = LogLevel::kInfo;
};

// What to do, or the exit code of a command line that is wrong (2) or asked for help (0); already
// printed then.
struct ParsedCommandLine {
  std::optional<CommandLine> command;
  int exit_code = 0;
};
ParsedCommandLine ParseCommandLine(int argc, char** argv);

}  // namespace hearth::store
