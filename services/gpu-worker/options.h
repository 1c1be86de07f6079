// The command line of hearth-gpu-worker.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "common/base/logging.h"
#include "services/gpu-worker/scheduler/draft_controller.h"

namespace hearth::worker {

struct CommandLine {
  std::filesystem::path model;
  std::filesystem::path run_dir;
  std::string store;                 // "unix:RUN/store.sock"
  std::string listen;                // "unix:RUN/worker.sock"
  std::string metrics_listen;        // empty: no metrics port
  std::string model_name;            // empty: the model folder's name
  std::string backend = "cpu";       // "cpu" or "cuda": "auto" is decided by ParseCommandLine
  uint64_t vram_bytes = 0;           // 0: what is free less a reserve
  int64_t expert_slots = -1;         // -1: as many as fit
  std::string cache_policy;          // empty: the default
  std::string kv_type = "bf16";      // or "int8", with CUDA
  std::string divide_misses = "on";  // or "off", with CUDA
  int n_threads = 0;
  bool exact = false;
  std::string isa;      // empty: the best
  int64_t context = 0;  // 0: what model and KV pages allow
  int64_t kv_tokens = 65536;
  int max_sequences = 8;
  int queue_limit = 64;
  int prefill_chunk = 64;
  int max_batch_tokens = 512;  // with cuda 2048, unless said
  Drafting mtp = Drafting::kAuto;
  int mtp_drafts = 2;
  double grace_seconds = 5;
  LogLevel log_level = LogLevel::kInfo;
};

// What to do, or the exit code of a command line that is wrong (2) or asked for help (0); already
// printed then.
struct ParsedCommandLine {
  std::optional<CommandLine> command;
  int exit_code = 0;
};
ParsedCommandLine ParseCommandLine(int argc, char** argv);

}  // namespace hearth::worker
