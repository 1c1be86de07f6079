// `hearth benchmark`: the speed of the engine on a model, without HTTP and scheduler, and of the
// machine under it.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/backend_flags.h"
#include "cli/commands.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/experts/memory_room.h"
#include "common/machine/machine_info.h"
#include "common/machine/machine_speed.h"
#include "common/synthetic/synthetic_checkpoint.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/benchmark/compare.h"
#include "services/gpu-worker/benchmark/report.h"
#include "services/gpu-worker/benchmark/routing.h"
#include "services/gpu-worker/benchmark/runner.h"
#include "services/gpu-worker/benchmark/traffic.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/experts/expert_tier.h"

namespace hearth::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMaxReportBytes = 16 << 20;

struct BenchmarkFlags {
  std::string model,
      tests = "prefill:128,prefill:512,prefill:2k,decode:128@0,decode:128@2k,decode:128@32k";
  std::string batch = "1", routing = "flat", compare, isa;
  int threads = UsableCores();
  int repetitions = 5;
  int max_batch_tokens = 512;
  int64_t warm_up = 8;
  double threshold = 0.05;
  uint64_t seed = 1;
  bool json = false, machine = false, exact = false, mtp = false;
  int mtp_drafts = 1;
  double mtp_right = 0.8;
  BackendFlags backend;
};

void Say(const std::string& text) {
  if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "%s\n", text.c_str());
}

// The model with everything that runs it. Members borrow from those before them.
struct Loaded {
  std::unique_ptr<Checkpoint> checkpoint;
  worker::BenchmarkRouting routing;
  uint64_t expert_bytes = 0, dense_bytes = 0, kv_bytes = 0;
  std::unique_ptr<worker::SegmentExperts> experts;
  std::unique_ptr<worker::CountingExperts> counted;
  std::unique_ptr<worker::Engine> engine;
};

// What is refused later would be found only after minutes of loading.
absl::Status CheckMemory(uint64_t experts, uint64_t dense, uint64_t kv) {
  for (const auto& room : {CgroupRoom(), MachineRoom()}) {
    if (!room || experts + dense + kv <= room->bytes) continue;
    return absl::ResourceExhaustedError(absl::StrCat(
        "the experts take ", experts >> 20, " MiB, other weights ", dense >> 20,
        " MiB, keys and values ", kv >> 20, " MiB, but ", room->limited_by, " leaves ",
        room->bytes >> 20, " MiB; choose fewer layers, shorter contexts or smaller batches"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Loaded> Load(const BenchmarkFlags& flags,
                            const std::vector<worker::BenchmarkTest>& tests) {
  Loaded loaded;
  HEARTH_ASSIGN_OR_RETURN(loaded.checkpoint, OpenModel(flags.model, flags.threads));
  const ModelConfig& config = loaded.checkpoint->config();
  if (flags.mtp && !loaded.checkpoint->has_mtp()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--mtp on: ", flags.model, " has no multi-token prediction head"));
  }
  HEARTH_ASSIGN_OR_RETURN(loaded.routing, worker::MakeRouting(flags.routing, config, flags.seed));
  worker::EngineOptions options{.n_threads = flags.threads,
                                .exact = flags.exact,
                                .isa = flags.isa,
                                .max_batch_tokens = flags.max_batch_tokens,
                                .max_drafts = flags.mtp ? flags.mtp_drafts : 0,
                                .routing = loaded.routing.routing.get()};
  flags.backend.Apply(&options);
  options.max_sequences = worker::LargestBatch(tests);
  // Pages of a GPU are larger.
  constexpr int kPageTokens = 64;
  options.kv_tokens = worker::KvTokensNeeded(
      tests, flags.backend.is_cuda() ? kPageTokens : options.page_tokens, flags.warm_up);
  const ExpertLayout layout = flags.exact ? kPlainExperts : kTiledExperts;
  HEARTH_ASSIGN_OR_RETURN(const SegmentPlan plan,
                          store::PlanExperts(*loaded.checkpoint, flags.threads, layout));
  for (const uint64_t bytes : plan.payload_bytes) loaded.expert_bytes += bytes;
  HEARTH_ASSIGN_OR_RETURN(loaded.dense_bytes,
                          worker::DenseMemory(*loaded.checkpoint, flags.exact, flags.mtp));
  HEARTH_ASSIGN_OR_RETURN(const worker::Traffic traffic,
                          worker::ComputeTraffic(*loaded.checkpoint, flags.exact, flags.mtp));
  loaded.kv_bytes =
      static_cast<uint64_t>(traffic.kv_token_bytes * static_cast<double>(options.kv_tokens));
  HEARTH_RETURN_IF_ERROR(CheckMemory(loaded.expert_bytes, loaded.dense_bytes, loaded.kv_bytes));
  HEARTH_ASSIGN_OR_RETURN(auto segment,
                          store::LoadIntoMemory(*loaded.checkpoint, flags.threads, layout));
  loaded.experts = std::make_unique<worker::SegmentExperts>(std::move(segment));
  loaded.counted = std::make_unique<worker::CountingExperts>(loaded.experts.get());
  HEARTH_ASSIGN_OR_RETURN(
      loaded.engine, worker::Engine::Create(*loaded.checkpoint, loaded.counted.get(), options));
  return loaded;
}

absl::StatusOr<Spread> ReadBandwidth(int n_threads) {
  SpeedOptions options;
  if (const auto room = MachineRoom()) {
    options.buffer_bytes = std::clamp<uint64_t>(room->bytes / 4, 64 << 20, options.buffer_bytes);
  }
  return MeasureReadBandwidth(n_threads, options);
}

absl::StatusOr<worker::BenchmarkReport> RunTests(const BenchmarkFlags& flags) {
  HEARTH_ASSIGN_OR_RETURN(const auto tests, worker::ParseTests(flags.tests, flags.batch));
  const auto start = Clock::now();
  HEARTH_ASSIGN_OR_RETURN(const Loaded loaded, Load(flags, tests));
  worker::BenchmarkReport report;
  report.load_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  report.model = IsSyntheticName(flags.model) ? loaded.checkpoint->folder().string() : flags.model;
  report.n_threads = flags.threads;
  report.repetitions = flags.repetitions;
  report.warm_up_tokens = flags.warm_up;
  report.kernels = std::string(loaded.engine->backend());
  report.routing = loaded.routing.description;
  if (flags.mtp) {
    report.mtp = absl::StrFormat("%d a step, %.0f %% of those tried right", flags.mtp_drafts,
                                 100 * flags.mtp_right);
  }
  report.fills_contexts =
      std::ranges::any_of(tests, [](const auto& test) { return test.context > 0; });
  report.memory = {{"RAM", "experts", loaded.expert_bytes},
                   {"RAM", "dense weights", loaded.dense_bytes},
                   {"RAM", "KV pages", loaded.kv_bytes}};
  if (worker::ExpertTier* tier = loaded.engine->expert_tier()) {
    for (const worker::TierPart& part : tier->Statistics().parts) {
      report.memory.push_back({part.tier == "vram" ? "VRAM" : "RAM", part.component, part.bytes});
    }
  }
  HEARTH_ASSIGN_OR_RETURN(report.read_bandwidth, ReadBandwidth(flags.threads));
  HEARTH_ASSIGN_OR_RETURN(const worker::Traffic traffic,
                          worker::ComputeTraffic(*loaded.checkpoint, flags.exact, flags.mtp));
  for (const worker::BenchmarkTest& test : tests) {
    Say(absl::StrCat(worker::TestName(test), " batch ", test.batch, " ..."));
    HEARTH_ASSIGN_OR_RETURN(worker::BenchmarkResult result,
                            worker::RunBenchmark(*loaded.engine, *loaded.counted, traffic, test,
                                                 {.repetitions = flags.repetitions,
                                                  .max_batch_tokens = flags.max_batch_tokens,
                                                  .warm_up_tokens = flags.warm_up,
                                                  .seed = flags.seed,
                                                  .drafts = flags.mtp ? flags.mtp_drafts : 0,
                                                  .right_share = flags.mtp_right}));
    report.results.push_back(std::move(result));
  }
  return report;
}

absl::StatusOr<std::optional<json::value>> ReadOld(const BenchmarkFlags& flags) {
  if (flags.compare.empty()) return std::nullopt;
  HEARTH_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.compare, kMaxReportBytes));
  auto old = ParseJson(text);
  if (!old.ok()) return Annotate(old.status(), flags.compare);
  return *std::move(old);
}

// Prints; true if something became slower.
absl::StatusOr<bool> RunModel(const BenchmarkFlags& flags) {
  // Read first: a wrong file should not cost a whole run.
  HEARTH_ASSIGN_OR_RETURN(const std::optional<json::value> old, ReadOld(flags));
  HEARTH_ASSIGN_OR_RETURN(const worker::BenchmarkReport report, RunTests(flags));
  json::object object = ToJson(report);
  std::optional<worker::Comparison> comparison;
  if (old) {
    auto compared = worker::CompareReports(*old, object, flags.threshold);
    if (!compared.ok()) return Annotate(compared.status(), flags.compare);
    comparison = *std::move(compared);
    object["comparison"] = ToJson(*comparison);
  }
  if (flags.json) {
    std::printf("%s\n", SerializeJson(object).c_str());
  } else {
    std::printf("%s%s", ToText(report).c_str(), comparison ? ToText(*comparison).c_str() : "");
  }
  return comparison && comparison->is_slower();
}

absl::Status RunMachine(const BenchmarkFlags& flags) {
  HEARTH_ASSIGN_OR_RETURN(const MachineSpeed speed, MeasureMachine(flags.threads));
  if (!flags.json) {
    const MachineInfo machine = ThisMachine();
    std::printf("%s, %d cores, %s\n%s", machine.cpu_model.c_str(), machine.usable_cores,
                machine.kernel.c_str(), ToText(speed).c_str());
    return absl::OkStatus();
  }
  const BuildInfo build = ThisBuild();
  const json::object object = {{"benchmark", "hearth machine"},
                               {"commit", json::string(build.commit.data(), build.commit.size())},
                               {"dirty", build.is_dirty},
                               {"machine", ToJson(ThisMachine())},
                               {"speed", ToJson(speed)}};
  std::printf("%s\n", SerializeJson(object).c_str());
  return absl::OkStatus();
}

int Run(const BenchmarkFlags& flags) {
  if (flags.machine) {
    const absl::Status status = RunMachine(flags);
    return status.ok() ? 0 : Fail("benchmark", status);
  }
  if (flags.model.empty()) {
    return Fail("benchmark", absl::InvalidArgumentError("give --model or --machine"));
  }
  const auto is_slower = RunModel(flags);
  if (!is_slower.ok()) return Fail("benchmark", is_slower.status());
  return *is_slower ? 1 : 0;
}

}  // namespace

void AddBenchmark(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<BenchmarkFlags>();
  CLI::App* command =
      app.add_subcommand("benchmark", "Measures the engine on a model, or the machine (--machine)");
  command->add_option("--model", flags->model,
                      "Checkpoint folder, or synthetic:SHAPE[,layers=N][,seed=S][,mtp=1]");
  command->add_flag("--machine", flags->machine,
                    "Only reading memory and multiplying, with 1 to --threads threads");
  command->add_option("--threads", flags->threads, "Threads (default: the usable cores)")
      ->check(CLI::Range(1, 1024));
  command->add_option("--repetitions", flags->repetitions, "Of each test (5)")
      ->check(CLI::Range(1, 1000));
  command
      ->add_option(
          "--warm-up", flags->warm_up,
          "Tokens of a decode test before those that are timed, so that an expert cache can "
          "settle")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      ->add_option("--tests", flags->tests,
                   "prefill:TOKENS[@CONTEXT] and decode:TOKENS[@CONTEXT], separated by commas")
      ->capture_default_str();
  command->add_option("--batch", flags->batch, "Sequences at once: 1,2,4,8")->capture_default_str();
  command->add_option("--max-batch-tokens", flags->max_batch_tokens, "Tokens of a step at most")
      ->check(CLI::Range(2, 65536))
      ->capture_default_str();
  command
      ->add_option("--routing", flags->routing,
                   "flat, locality[:WORKING_SET], shared[:WORKING_SET] or trace:FILE "
                   "(docs/benchmark.md)")
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Seed of token ids, contexts and imposed routing (1)");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->add_option("--compare", flags->compare,
                      "Older output of --json; exit status 1 if a test became slower");
  command->add_option("--threshold", flags->threshold, "Share that counts as slower (0.05)")
      ->check(CLI::Range(0.0, 1.0));
  const std::map<std::string, bool> on_off = {{"on", true}, {"off", false}};
  command
      ->add_option("--mtp", flags->mtp,
                   "Decode with guesses of the multi-token prediction head (off)")
      ->transform(CLI::CheckedTransformer(on_off));
  command->add_option("--mtp-drafts", flags->mtp_drafts, "Guesses a step")
      ->check(CLI::Range(1, worker::kMaxDrafts))
      ->capture_default_str();
  command
      ->add_option("--mtp-right", flags->mtp_right,
                   "Share of the guesses that is taken for right: token ids are random")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_flag("--exact", flags->exact, "The float32 backend");
  AddBackendFlags(*command, &flags->backend);
  command
      ->add_option("--isa", flags->isa, "Instruction set of the fast backend (default: the best)")
      ->check(CLI::IsMember({"amx", "avx512", "avxvnni", "avx2"}));
  command->callback([flags, exit_code] { *exit_code = Run(*flags); });
}

}  // namespace hearth::cli
