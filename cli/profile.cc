// `hearth profile`: which experts a run uses. --record runs prompts through the engine and writes a
// routing trace; without it a trace is counted into a profile for the policy "profile".
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/commands.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/checkpoint/checkpoint.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/experts/profile_file.h"
#include "services/gpu-worker/experts/simulation/recorder.h"
#include "services/gpu-worker/experts/simulation/simulator.h"

namespace hearth::cli {
namespace {

constexpr uint64_t kMaxPromptBytes = 256 << 20;

struct ProfileFlags {
  std::string trace, out;                   // counting
  std::string record, model, prompts_file;  // recording
  std::vector<std::string> prompts;
  bool raw = false, exact = false;
  int threads = UsableCores();
  worker::RecordOptions options;
};

// A JSON array of texts, or of objects with "prompt"; else one prompt a line.
absl::StatusOr<std::vector<std::string>> ParsePrompts(const std::string& text) {
  std::vector<std::string> prompts;
  if (text.find_first_not_of(" \t\r\n") == std::string::npos || text[0] != '[') {
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipWhitespace())) {
      prompts.emplace_back(line);
    }
    return prompts;
  }
  HEARTH_ASSIGN_OR_RETURN(const json::value parsed, ParseJson(text));
  for (const json::value& item : parsed.get_array()) {
    const json::object* object = item.if_object();
    const json::value* prompt = object != nullptr ? object->if_contains("prompt") : &item;
    if (prompt == nullptr || !prompt->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "item ", prompts.size(), " is neither a text nor an object with a text \"prompt\""));
    }
    prompts.emplace_back(prompt->as_string());
  }
  return prompts;
}

absl::StatusOr<std::vector<std::string>> AllPrompts(const ProfileFlags& flags) {
  std::vector<std::string> prompts = flags.prompts;
  if (!flags.prompts_file.empty()) {
    HEARTH_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.prompts_file, kMaxPromptBytes));
    auto parsed = ParsePrompts(text);
    if (!parsed.ok()) return Annotate(parsed.status(), flags.prompts_file);
    prompts.insert(prompts.end(), parsed->begin(), parsed->end());
  }
  if (prompts.empty()) {
    return absl::InvalidArgumentError("--record needs prompts: --prompt TEXT or --prompts FILE");
  }
  return prompts;
}

// Texts to token ids: through the chat template, unless --raw.
class PromptReader {
 public:
  static absl::StatusOr<PromptReader> Open(const ProfileFlags& flags) {
    PromptReader reader;
    const std::filesystem::path folder = flags.model;
    HEARTH_ASSIGN_OR_RETURN(reader.tokenizer_, Tokenizer::Load(folder / "tokenizer.json"));
    if (!flags.raw) {
      HEARTH_ASSIGN_OR_RETURN(reader.chat_template_, ChatTemplate::Load(folder));
    }
    return reader;
  }
  absl::StatusOr<std::vector<int32_t>> Read(const std::string& prompt) const {
    if (chat_template_ == nullptr) return tokenizer_->Encode(prompt);
    const json::object message = {{"role", "user"}, {"content", prompt}};
    HEARTH_ASSIGN_OR_RETURN(const std::string text,
                            chat_template_->Render({{"messages", json::array{message}},
                                                    {"tools", nullptr},
                                                    {"add_generation_prompt", true}}));
    return tokenizer_->Encode(text);
  }

 private:
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;
};

absl::Status Record(const ProfileFlags& flags) {
  HEARTH_ASSIGN_OR_RETURN(const auto prompts, AllPrompts(flags));
  HEARTH_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(flags.model));
  HEARTH_ASSIGN_OR_RETURN(const PromptReader reader, PromptReader::Open(flags));
  const ExpertLayout layout = flags.exact ? kPlainExperts : kTiledExperts;
  HEARTH_ASSIGN_OR_RETURN(auto segment, store::LoadIntoMemory(*checkpoint, flags.threads, layout));
  worker::SegmentExperts experts(std::move(segment));
  worker::RecordOptions options = flags.options;
  options.eos_ids = checkpoint->config().eos_token_ids;
  HEARTH_ASSIGN_OR_RETURN(const auto engine,
                          worker::Engine::Create(*checkpoint, &experts,
                                                 {.n_threads = flags.threads,
                                                  .exact = flags.exact,
                                                  .max_batch_tokens = options.max_batch_tokens}));
  HEARTH_ASSIGN_OR_RETURN(const auto early, worker::EarlyRouter::Read(*checkpoint));
  worker::RoutingRecorder recorder(engine.get(), flags.model, checkpoint->ExpertFingerprint(),
                                   early.get());
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto ids = reader.Read(prompts[i]);
    if (!ids.ok()) return Annotate(ids.status(), absl::StrCat("prompt ", i));
    const absl::Status run = recorder.Run(*ids, options);
    if (!run.ok()) return Annotate(run, absl::StrCat("prompt ", i));
    if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r%zu of %zu ", i + 1, prompts.size());
  }
  HEARTH_RETURN_IF_ERROR(worker::WriteTrace(recorder.trace(), flags.record));
  std::fprintf(stderr, "%s: %zu tokens of %zu prompts\n", flags.record.c_str(),
               recorder.trace().tokens.size(), prompts.size());
  return absl::OkStatus();
}

absl::Status Count(const ProfileFlags& flags) {
  HEARTH_ASSIGN_OR_RETURN(const worker::RoutingTrace trace, worker::ReadTrace(flags.trace));
  const auto uses = worker::CountUses(trace.Shape(0), worker::Replay(trace));
  const std::string text = worker::ProfileText(trace.fingerprint, uses) + "\n";
  if (!flags.out.empty()) return WriteFileAtomically(flags.out, text);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

absl::Status RunProfile(const ProfileFlags& flags) {
  if (flags.record.empty() == flags.trace.empty()) {
    return absl::InvalidArgumentError("give a TRACE to count, or --record FILE to write one");
  }
  if (flags.record.empty()) return Count(flags);
  if (flags.model.empty()) return absl::InvalidArgumentError("--record needs --model");
  return Record(flags);
}

}  // namespace

void AddProfile(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<ProfileFlags>();
  CLI::App* command = app.add_subcommand(
      "profile", "Counts a routing trace into a profile, or records one (--record)");
  command->add_option("trace", flags->trace, "Trace to count");
  command->add_option("--out", flags->out, "File for the profile (default: standard output)");
  command->add_option("--record", flags->record, "Runs prompts and writes their routing to a file");
  command->add_option("--model", flags->model, "Checkpoint folder (--record)");
  command->add_option("--prompt", flags->prompts, "A prompt; may be given often (--record)");
  command->add_option(
      "--prompts", flags->prompts_file,
      "File: one prompt a line, or a JSON array of texts or {\"prompt\"} (--record)");
  command->add_flag("--raw", flags->raw, "No chat template around prompts (--record)");
  command->add_option("--max-tokens", flags->options.max_tokens, "Of each answer (128)")
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("--threads", flags->threads, "Threads (default: the usable cores)")
      ->check(CLI::Range(1, 1024));
  command->add_flag("--exact", flags->exact, "The float32 backend");
  command->callback([flags, exit_code] {
    const absl::Status status = RunProfile(*flags);
    *exit_code = status.ok() ? 0 : Fail("profile", status);
  });
}

}  // namespace hearth::cli
