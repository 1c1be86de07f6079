// `hearth doctor`: what this machine is and gives, whether Hearth can serve here, and what would
// make it faster. Keeps what it found for later use.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/doctor/examine.h"
#include "cli/supervisor/run_dir.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/machine/machine_rates.h"

namespace hearth::cli {
namespace {

struct DoctorFlags {
  ExamineOptions examine;
  std::string out;
  bool json = false, no_measure = false;
};

absl::Status Keep(const DoctorFlags& flags, json::object findings) {
  std::filesystem::path file = flags.out;
  if (flags.out.empty()) {
    file = MachineFile().value_or(DefaultRunDir() / "machine.json");
    HEARTH_RETURN_IF_ERROR(MakePrivateDirectory(file.parent_path()));
  }
  KeepWhatWasMeasured(file, &findings);
  return WriteFileAtomically(file, SerializeJson(findings) + "\n");
}

int RunDoctor(DoctorFlags& flags) {
  flags.examine.measure = !flags.no_measure;
  if (flags.examine.measure && ::isatty(STDERR_FILENO) != 0) {
    std::fputs("measuring memory, processor and GPU, a few seconds ...\n", stderr);
  }
  const auto diagnosis = Examine(flags.examine);
  if (!diagnosis.ok()) return Fail("doctor", diagnosis.status());
  const json::object findings = ToJson(*diagnosis);
  const std::string text = flags.json ? SerializeJson(findings) + "\n" : ToText(*diagnosis);
  std::fputs(text.c_str(), stdout);
  // What was not measured must not replace what was.
  if (flags.examine.measure || !flags.out.empty()) {
    if (const absl::Status kept = Keep(flags, findings); !kept.ok()) {
      std::fprintf(stderr, "hearth doctor: not kept: %s\n", std::string(kept.message()).c_str());
    }
  }
  return Problems(*diagnosis).empty() ? 0 : 1;
}

}  // namespace

void AddDoctor(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<DoctorFlags>();
  ExamineOptions& examine = flags->examine;
  examine.n_threads = UsableCores();
  CLI::App* command = app.add_subcommand(
      "doctor",
      "Says what this machine gives and whether Hearth can serve on it (exit status 1: no)");
  command->add_option(
      "--model", examine.model,
      "Also checks this checkpoint folder (or synthetic:SHAPE) and whether it fits");
  command->add_option("--host", examine.host, "Address to be served (127.0.0.1)");
  command->add_option("--port", examine.port, "Port to be served (8080)")
      ->check(CLI::Range(0, 65535));
  command->add_option("--kv-tokens", examine.kv_tokens, "As hearth serve will get it (65536)")
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 24));
  command->add_option("--threads", examine.n_threads, "Threads (default: the usable cores)")
      ->check(CLI::Range(1, 1024));
  command->add_flag("--no-measure", flags->no_measure, "Only look: no seconds of full load");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->add_option("--out", flags->out,
                      "File that keeps the findings (default: machine.json in ~/.cache/hearth)");
  command->callback([flags, exit_code] { *exit_code = RunDoctor(*flags); });
}

}  // namespace hearth::cli
