// `hearth serve`: runs the three services with one model until it is told to stop.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/supervisor/cluster.h"
#include "cli/supervisor/run_dir.h"
#include "cli/supervisor/supervisor.h"
#include "common/base/status_macros.h"
#include "common/experts/huge_tmpfs.h"
#include "common/experts/segment_file.h"
#include "common/synthetic/model_spec.h"

namespace hearth::cli {
namespace {

// A flag of a service that is handed on as the user gave it.
struct PassedFlag {
  const char* name;
  const char* help;
  std::vector<ServiceIndex> services;
};

const std::vector<PassedFlag>& PassedFlags() {
  static const std::vector<PassedFlag> flags = {
      {"--threads", "Threads that compute (default: the usable cores)", {kStore, kWorker}},
      {"--context", "Longest prompt + answer, in tokens", {kWorker}},
      {"--max-sequences", "Generations at once", {kWorker}},
      {"--queue-limit", "Requests that may wait", {kWorker}},
      {"--prefill-chunk", "Prompt tokens of one step", {kWorker}},
      {"--kv-tokens", "Tokens that all generations together can keep", {kWorker}},
      {"--model-name", "The model's name in the API (default: the folder's)", {kWorker}},
      {"--backend", "What computes: cuda, cpu or auto (default)", {kWorker}},
      {"--vram", "VRAM that may be used, as 14GiB (default: what is free less 1 GiB)", {kWorker}},
      {"--expert-slots", "Experts kept in VRAM (default: as many as fit)", {kWorker}},
      {"--kv-type", "Keys and values in VRAM: bf16 (default), int8", {kWorker}},
      {"--divide-misses",
       "Whether CPU and GPU share experts missed in VRAM: on (default), off",
       {kWorker}},
      {"--cache-policy",
       "Which experts stay there: lru, prompt, predictive, profile, recency",
       {kWorker}},
      {"--isa", "Instruction set of the CPU backend: amx, avx512, avxvnni, avx2", {kWorker}},
      {"--mtp", "Guess tokens with the model's own head: auto (default), on, off", {kWorker}},
      {"--mtp-drafts", "Tokens guessed ahead at most", {kWorker}},
      {"--log-level", "debug, info, warning or error", {kStore, kWorker, kGateway}},
      {"--allowed-host", "Further Host header to accept (may be repeated)", {kGateway}},
      {"--allowed-origin", "Web origin to accept (may be repeated)", {kGateway}},
      {"--api-key-file", "File with the API keys, one a line", {kGateway}},
      {"--max-connections", "HTTP connections at once", {kGateway}},
  };
  return flags;
}

struct ServeFlags {
  ClusterOptions cluster;
  std::string model, run_dir, segment, bin_dir;
  std::vector<std::vector<std::string>> passed;  // values of each of PassedFlags()
  int grace_seconds = 5;
  bool exact = false;
  bool verbose = false;
};

std::filesystem::path OwnFolder() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
}

void FillIn(ServeFlags& flags) {
  ClusterOptions& cluster = flags.cluster;
  std::error_code ignored;
  cluster.model = IsSyntheticName(flags.model) ? std::filesystem::path(flags.model)
                                               : std::filesystem::absolute(flags.model, ignored);
  cluster.run_dir = flags.run_dir.empty()
                        ? DefaultRunDir()
                        : std::filesystem::absolute(flags.run_dir, ignored).lexically_normal();
  cluster.segment = flags.segment.empty() ? DefaultSegmentPath(cluster.run_dir)
                                          : std::filesystem::absolute(flags.segment, ignored);
  cluster.bin_dir = flags.bin_dir.empty() ? OwnFolder() : std::filesystem::path(flags.bin_dir);
  cluster.grace = std::chrono::seconds(flags.grace_seconds);
  if (::isatty(STDERR_FILENO) != 0) {
    cluster.style = flags.verbose ? Console::Style::kPeopleAll : Console::Style::kPeople;
  }
  if (flags.exact) {
    cluster.store_flags.push_back("--exact");
    cluster.worker_flags.push_back("--exact");
  }
  std::vector<std::string>* const targets[kServices] = {&cluster.store_flags, &cluster.worker_flags,
                                                        &cluster.gateway_flags};
  for (size_t i = 0; i < PassedFlags().size(); ++i) {
    for (const std::string& value : flags.passed[i]) {
      for (const ServiceIndex service : PassedFlags()[i].services) {
        targets[service]->push_back(PassedFlags()[i].name);
        targets[service]->push_back(value);
      }
    }
  }
}

// What can be refused before anything starts.
absl::StatusOr<UniqueFd> Prepare(const ClusterOptions& cluster) {
  std::error_code error;
  if (IsSyntheticName(cluster.model.string())) {
    HEARTH_RETURN_IF_ERROR(ParseSyntheticName(cluster.model.string()).status());
  } else if (!std::filesystem::is_directory(cluster.model, error)) {
    return absl::NotFoundError(
        absl::StrCat(cluster.model.string(),
                     ": no such folder; --model names a folder with config.json, "
                     "tokenizer.json and *.safetensors"));
  }
  HEARTH_ASSIGN_OR_RETURN(UniqueFd lock, LockRunDir(cluster.run_dir));
  HEARTH_RETURN_IF_ERROR(CheckPortIsFree(cluster.host, cluster.port));
  return lock;
}

// Puts the segment on a tmpfs of our own, in huge pages, where one can be had: the descriptor of
// its folder. A file that the user names, wants kept, or has kept, stays where it is.
UniqueFd PlaceSegment(const ServeFlags& flags, ClusterOptions* cluster) {
  std::error_code ignored;
  if (!flags.segment.empty()) return UniqueFd();
  if (cluster->keep_segment) {
    cluster->no_huge_pages_reason = "--keep-segment needs a file that outlives this process";
    return UniqueFd();
  }
  if (std::filesystem::exists(cluster->segment, ignored)) {
    cluster->no_huge_pages_reason = "an earlier start left its experts in memory";
    return UniqueFd();
  }
  auto tmpfs = OpenHugeTmpfs();
  if (!tmpfs.ok()) {
    cluster->no_huge_pages_reason = std::string(tmpfs.status().message());
    return UniqueFd();
  }
  cluster->segment_folder = tmpfs->get();
  cluster->segment = FdFolder(tmpfs->get()) / "experts";
  return *std::move(tmpfs);
}

int RunServe(ServeFlags& flags) {
  FillIn(flags);
  auto lock = Prepare(flags.cluster);
  if (!lock.ok()) {
    Fail("serve", lock.status());
    return 2;
  }
  const UniqueFd segment_folder = PlaceSegment(flags, &flags.cluster);
  Supervisor supervisor(flags.cluster, *std::move(lock));
  return supervisor.Run();
}

}  // namespace

void AddServe(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<ServeFlags>();
  flags->passed.resize(PassedFlags().size());
  ClusterOptions& cluster = flags->cluster;
  CLI::App* command = app.add_subcommand("serve", "Serves a model until Ctrl-C");
  command
      ->add_option("--model", flags->model,
                   "Checkpoint folder, or synthetic:SHAPE[,layers=N][,seed=S][,mtp=1]")
      ->required();
  command->add_option("--host", cluster.host, "Address to listen on (127.0.0.1)");
  command->add_option("--port", cluster.port, "Port to listen on (8080; 0: any)")
      ->check(CLI::Range(0, 65535));
  command->add_option("--run-dir", flags->run_dir,
                      "Folder of sockets and locks ($XDG_RUNTIME_DIR/hearth or /tmp/hearth-UID)");
  command->add_option("--segment", flags->segment,
                      "File on a tmpfs or hugetlbfs that holds the experts (default: on a tmpfs of "
                      "its own in huge pages where that can be had, else in /dev/shm)");
  command
      ->add_option("--grace-seconds", flags->grace_seconds,
                   "Time that running requests get at the end (5)")
      ->check(CLI::Range(0, 3600));
  command->add_flag("--keep-segment", cluster.keep_segment,
                    "Leave the experts in memory at the end, for a quick next start");
  command->add_flag("--metrics", cluster.expose_metrics,
                    "Metrics of worker and store on loopback, ports + 1 and + 2");
  command->add_flag("--exact", flags->exact,
                    "Compute in float32 throughout: slow, for comparisons");
  command->add_flag("--verbose", flags->verbose, "All log lines, also on a terminal");
  command->add_option("--bin-dir", flags->bin_dir)->group("");  // for tests
  for (size_t i = 0; i < PassedFlags().size(); ++i) {
    // One value each time the flag is given.
    command->add_option(PassedFlags()[i].name, flags->passed[i], PassedFlags()[i].help)
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  }
  command->callback([flags, exit_code] { *exit_code = RunServe(*flags); });
}

}  // namespace hearth::cli
