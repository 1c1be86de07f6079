// Looks at this machine, for `hearth doctor`.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "cli/doctor/diagnosis.h"

namespace hearth::cli {

struct ExamineOptions {
  std::string model;  // empty: none is looked at
  std::string host = "127.0.0.1";
  int port = 8080;
  int n_threads = 1;
  int64_t kv_tokens = 65536;
  bool measure = true;  // seconds, with every core busy
};

// Errors only where measuring fails.
absl::StatusOr<Diagnosis> Examine(const ExamineOptions& options);

// GPUs that the driver shows.
std::vector<std::string> FindGpus(const std::filesystem::path& driver = "/proc/driver/nvidia/gpus");

}  // namespace hearth::cli
