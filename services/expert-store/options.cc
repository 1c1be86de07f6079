#include "services/expert-store/options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/base/thread_pool.h"
#include "common/experts/segment_file.h"

namespace hearth::store {
namespace {

std::filesystem::path DefaultRunDir() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/') return std::filesystem::path(runtime) / "hearth";
  return absl::StrCat("/tmp/hearth-", ::geteuid());
}

}  // namespace

ParsedCommandLine ParseCommandLine(int argc, char** argv) {
  CommandLine line;
  line.run_dir = DefaultRunDir();
  line.n_threads = UsableCores();
  CLI::App app("Keeps all experts of a model in shared memory for the GPU workers of this host.",
               "hearth-expert-store");
  // The last one counts, so that a container's defaults can be overridden.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--model", line.model,
                 "Folder of the checkpoint, or synthetic:SHAPE[,layers=N][,seed=S][,mtp=1]")
      ->required();
  app.add_option("--run-dir", line.run_dir, "Private folder for sockets, locks and the profile")
      ->capture_default_str();
  app.add_option("--segment", line.segment,
                 "Shared-memory file (default: one in /dev/shm, named after user and run folder)");
  app.add_option("--listen", line.listen, "gRPC address (default: unix:RUN_DIR/store.sock)");
  app.add_option("--metrics-listen", line.metrics_listen, "HOST:PORT of GET /metrics");
  app.add_option("--threads", line.n_threads, "Threads that load")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--load-rate-mb", line.load_rate_mb, "MB/s at most while loading; 0: no limit")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--verify-rate-mb", line.verify_rate_mb,
                 "MB/s of background verification; 0: none")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--verify-interval-seconds", line.verify_interval_seconds,
                 "From the end of one pass of verification to the next")
      ->check(CLI::Range(0.0, 1e8))
      ->capture_default_str();
  app.add_option("--grace-seconds", line.grace_seconds,
                 "For running calls when told to stop, at most")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_flag("--exact", line.exact,
               "Keep the experts as the checkpoint has them, for workers with --exact; without it "
               "they lie as the fast kernels read them");
  app.add_flag("--remove-segment-on-exit", line.remove_segment_on_exit,
               "Free the memory at exit instead of leaving it to the next start");
  const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                  {"info", LogLevel::kInfo},
                                                  {"warning", LogLevel::kWarning},
                                                  {"error", LogLevel::kError}};
  app.add_option("--log-level", line.log_level, "debug, info, warning or error")
      ->transform(CLI::CheckedTransformer(levels));
  // The reason is the last line, for those who show only that one.
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    return absl::StrCat(failed->get_name(), ": ", error.what(), " (--help lists all options)\n");
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return {std::nullopt, app.exit(error) == 0 ? 0 : 2};
  }
  std::error_code ignored;
  line.run_dir = std::filesystem::absolute(line.run_dir, ignored);
  if (line.segment.empty()) line.segment = DefaultSegmentPath(line.run_dir);
  line.segment = std::filesystem::absolute(line.segment, ignored);
  if (line.listen.empty())
    line.listen = absl::StrCat("unix:", (line.run_dir / "store.sock").string());
  return {line, 0};
}

}  // namespace hearth::store
