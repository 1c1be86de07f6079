// `hearth verify`: runs the engine on a reference's input and says how far every quantity is off.
#include "services/gpu-worker/engine/verify.h"

#include <cstdio>
#include <memory>
#include <string>

#include "cli/backend_flags.h"
#include "cli/commands.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/checkpoint/checkpoint.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/engine/expert_sources.h"

namespace hearth::cli {
namespace {

struct VerifyFlags {
  std::string model, reference;
  bool json = false;
  bool exact = false, fast = false;
  std::string isa;
  int threads = UsableCores();
  BackendFlags backend;
};

// Everything in one process: the experts lie in a private segment, read as a worker reads them.
absl::StatusOr<worker::VerifyReport> RunVerify(const VerifyFlags& flags) {
  HEARTH_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(flags.model));
  HEARTH_ASSIGN_OR_RETURN(auto segment,
                          store::LoadIntoMemory(*checkpoint, flags.threads,
                                                flags.fast ? kTiledExperts : kPlainExperts));
  worker::SegmentExperts experts(std::move(segment));
  worker::EngineOptions options{.n_threads = flags.threads,
                                .exact = !flags.fast,
                                .isa = flags.isa,
                                .max_batch_tokens = 4096,
                                .max_drafts = 1};
  flags.backend.Apply(&options);
  HEARTH_ASSIGN_OR_RETURN(const auto engine,
                          worker::Engine::Create(*checkpoint, &experts, options));
  return worker::Verify(*engine, flags.reference, {.exact = !flags.fast});
}

}  // namespace

void AddVerify(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<VerifyFlags>();
  CLI::App* command =
      app.add_subcommand("verify",
                         "Compares the engine with a reference; exit status 0 only if "
                         "every quantity is within tolerance");
  command->add_option("model", flags->model, "Checkpoint folder")->required();
  command->add_option("reference", flags->reference, "reference.safetensors")->required();
  command->add_flag("--json", flags->json, "Print one JSON object");
  CLI::Option* exact =
      command->add_flag("--exact", flags->exact,
                        "The float32 backend, by strict tolerances in every quantity: the default");
  command
      ->add_flag("--fast", flags->fast,
                 "The fast backend, judged by its logits and the likelihood of the text")
      ->excludes(exact);
  command->add_option("--isa", flags->isa, "Instruction set of the fast one (default: the best)")
      ->check(CLI::IsMember({"amx", "avx512", "avxvnni", "avx2"}));
  command->add_option("--threads", flags->threads, "Threads")->check(CLI::Range(1, 1024));
  AddBackendFlags(*command, &flags->backend);
  command->callback([flags, exit_code] {
    const auto report = RunVerify(*flags);
    if (!report.ok()) {
      *exit_code = Fail("verify", report.status());
      return;
    }
    std::printf("%s", flags->json ? (SerializeJson(report->ToJson()) + "\n").c_str()
                                  : report->ToText().c_str());
    *exit_code = report->ok() ? 0 : 1;
  });
}

}  // namespace hearth::cli
