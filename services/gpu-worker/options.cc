#include "services/gpu-worker/options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/base/thread_pool.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {
namespace {

constexpr int64_t kMaxTokens = 1 << 24;

std::filesystem::path DefaultRunDir() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/') return std::filesystem::path(runtime) / "hearth";
  return absl::StrCat("/tmp/hearth-", ::geteuid());
}

void AddBackend(CLI::App& app, CommandLine& line) {
  app.add_option("--backend", line.backend,
                 "What computes: cuda, cpu, or auto (cuda where this build and machine have it)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--vram", line.vram_bytes,
                 "VRAM that the CUDA backend may use, as 14GiB (default: what is free less 1 GiB)")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--expert-slots", line.expert_slots,
                 "Experts that it keeps in VRAM (default: as many as fit)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  app.add_option("--kv-type", line.kv_type,
                 "Keys and values of the CUDA backend: bf16, or int8 for twice the context")
      ->check(CLI::IsMember({"bf16", "int8"}))
      ->capture_default_str();
  app.add_option("--divide-misses", line.divide_misses,
                 "Whether CPU and GPU share the work on experts that are not in VRAM, by measured "
                 "times: on; off computes the same bits each time")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app.add_option(
         "--cache-policy", line.cache_policy,
         "Which experts stay there: lru (default), prompt, predictive, recency, or profile: "
         "those that the store has counted most, once it has counts")
      ->check(CLI::IsMember({"lru", "prompt", "predictive", "profile", "recency"}));
  app.add_flag("--exact", line.exact,
               "Compute in float32 throughout: slow, for comparisons (the store needs it too)");
  app.add_option("--isa", line.isa, "Instruction set of the CPU backend (default: the best)")
      ->check(CLI::IsMember({"amx", "avx512", "avxvnni", "avx2"}));
}

void AddSizes(CLI::App& app, CommandLine& line) {
  app.add_option("--threads", line.n_threads, "Threads that compute")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--context", line.context,
                 "Tokens of a prompt and its answer together (default: what the model allows, at "
                 "most --kv-tokens)")
      ->check(CLI::Range(int64_t{2}, kMaxTokens));
  app.add_option("--kv-tokens", line.kv_tokens, "Tokens that all sequences together can keep")
      ->check(CLI::Range(int64_t{16}, kMaxTokens))
      ->capture_default_str();
  app.add_option("--max-sequences", line.max_sequences, "Sequences computed at the same time")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--queue-limit", line.queue_limit, "Requests that may wait beyond those")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  app.add_option("--prefill-chunk", line.prefill_chunk,
                 "Prompt tokens of a step in which others decode")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option(
         "--max-batch-tokens", line.max_batch_tokens,
         "Tokens of a step at most (default: 512, with cuda 2048: what a step streams to the "
         "GPU is the same for many tokens)")
      ->check(CLI::Range(2, 65536));
}

// What was left to us.
void Decide(const CLI::App& app, CommandLine& line) {
  constexpr int kCudaBatchTokens = 2048;
  if (line.backend == "auto") line.backend = HasCudaDevice() ? "cuda" : "cpu";
  if (line.backend == "cuda" && app.count("--max-batch-tokens") == 0) {
    line.max_batch_tokens = kCudaBatchTokens;
  }
}

// What the bounds of each option alone don't say.
void CheckSizes(const CommandLine& line) {
  if (line.max_sequences < line.max_batch_tokens) return;
  throw CLI::ValidationError(
      "--max-sequences",
      absl::StrCat("Value ", line.max_sequences, " must be less than --max-batch-tokens, which is ",
                   line.max_batch_tokens, ": a step computes a token of each sequence"));
}

}  // namespace

ParsedCommandLine ParseCommandLine(int argc, char** argv) {
  CommandLine line;
  line.run_dir = DefaultRunDir();
  line.backend = "auto";
  line.n_threads = UsableCores();
  CLI::App app("Runs the model: text in, text out, over gRPC.", "hearth-gpu-worker");
  app.add_option("--model", line.model,
                 "Folder of the checkpoint, or synthetic:SHAPE[,layers=N][,seed=S][,mtp=1]")
      ->required();
  app.add_option("--run-dir", line.run_dir, "Private folder for sockets and locks")
      ->capture_default_str();
  app.add_option("--store", line.store,
                 "Expert store's address (default: unix:RUN_DIR/store.sock)");
  app.add_option("--listen", line.listen, "gRPC address (default: unix:RUN_DIR/worker.sock)");
  app.add_option("--metrics-listen", line.metrics_listen, "HOST:PORT of GET /metrics");
  app.add_option("--model-name", line.model_name, "Name in the API (default: the folder's)");
  AddBackend(app, line);
  AddSizes(app, line);
  const std::map<std::string, Drafting> drafting = {
      {"auto", Drafting::kAuto}, {"on", Drafting::kOn}, {"off", Drafting::kOff}};
  app.add_option("--mtp", line.mtp,
                 "Guess tokens with the checkpoint's multi-token prediction head: auto (while it "
                 "measures faster; the default), on or off. Texts are the same")
      ->transform(CLI::CheckedTransformer(drafting));
  app.add_option("--mtp-drafts", line.mtp_drafts, "Tokens guessed ahead at most")
      ->check(CLI::Range(1, kMaxDrafts))
      ->capture_default_str();
  app.add_option("--grace-seconds", line.grace_seconds, "For running requests when told to stop")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
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
    Decide(app, line);
    CheckSizes(line);
  } catch (const CLI::ParseError& error) {
    return {std::nullopt, app.exit(error) == 0 ? 0 : 2};
  }
  std::error_code ignored;
  line.run_dir = std::filesystem::absolute(line.run_dir, ignored);
  if (line.store.empty())
    line.store = absl::StrCat("unix:", (line.run_dir / "store.sock").string());
  if (line.listen.empty()) {
    line.listen = absl::StrCat("unix:", (line.run_dir / "worker.sock").string());
  }
  return {line, 0};
}

}  // namespace hearth::worker
