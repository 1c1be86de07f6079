// `hearth make-model`: a model of real shapes and random weights, in the published format.
#include "common/synthetic/make_model.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"

namespace hearth::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct MakeModelFlags {
  std::string shape, out;
  int64_t layers = 0;
  uint64_t seed = 1;
  bool mtp = false;
  int threads = UsableCores();
};

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

absl::Status RunMakeModel(const MakeModelFlags& flags, bool layers_given) {
  if (layers_given && flags.layers == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--layers 0: allowed are 1 to ", kMaxSyntheticLayers));
  }
  HEARTH_ASSIGN_OR_RETURN(const SyntheticSpec spec,
                          MakeSyntheticSpec(flags.shape, flags.layers, flags.seed, flags.mtp));
  const bool is_terminal = ::isatty(STDERR_FILENO) != 0;
  const auto start = Clock::now();
  auto last = start;
  uint64_t bytes = 0;
  const auto show = [&](const MakeModelProgress& progress) {
    bytes = progress.bytes_total;
    const auto now = Clock::now();
    const bool is_end = progress.bytes_done == progress.bytes_total;
    if (!is_terminal || (now - last < std::chrono::milliseconds(200) && !is_end)) return;
    last = now;
    std::fprintf(stderr, "\r%3.0f %% of %.2f GB, %.2f GB/s ",
                 100.0 * static_cast<double>(progress.bytes_done) / static_cast<double>(bytes),
                 static_cast<double>(bytes) / 1e9,
                 static_cast<double>(progress.bytes_done) / 1e9 / SecondsSince(start));
    if (is_end) std::fputc('\n', stderr);
  };
  HEARTH_RETURN_IF_ERROR(MakeModel(spec, {.folder = flags.out, .n_threads = flags.threads}, show));
  std::printf("%s: %s, %.2f GB in %.1f s\n", flags.out.c_str(), SyntheticName(spec).c_str(),
              static_cast<double>(bytes) / 1e9, SecondsSince(start));
  return absl::OkStatus();
}

}  // namespace

void AddMakeModel(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<MakeModelFlags>();
  CLI::App* command = app.add_subcommand(
      "make-model", "Writes a model of real shapes with random weights, in the published format");
  command->add_option("--shape", flags->shape, "Shape: " + absl::StrJoin(SyntheticShapes(), ", "))
      ->required();
  const CLI::Option* layers =
      command->add_option("--layers", flags->layers,
                          absl::StrCat("Layers, 1 to ", kMaxSyntheticLayers,
                                       " (default: as many as the shape's model has)"));
  command->add_option("--out", flags->out, "Folder to make; must be empty where it exists")
      ->required();
  command->add_option("--seed", flags->seed, "Seed of the weights (1)");
  command->add_flag("--mtp", flags->mtp, "With a multi-token prediction head");
  command->add_option("--threads", flags->threads, "Threads")->check(CLI::Range(1, 1024));
  command->callback([flags, layers, exit_code] {
    const absl::Status status = RunMakeModel(*flags, layers->count() > 0);
    *exit_code = status.ok() ? 0 : Fail("make-model", status);
  });
}

}  // namespace hearth::cli
