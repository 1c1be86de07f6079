// `hearth generate`: one answer, streamed to standard output.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/client/sampling_flags.h"
#include "cli/client/session.h"
#include "cli/commands.h"
#include "common/base/signals.h"
#include "common/base/status_macros.h"

namespace hearth::cli {
namespace {

struct GenerateFlags {
  std::string prompt, system;
  bool raw = false;
  SessionOptions session;
  SamplingFlags sampling;
};

v1::GenerateRequest MakeRequest(const GenerateFlags& flags) {
  v1::GenerateRequest request;
  request.set_request_id(absl::StrCat("cli-", ::getpid()));
  if (flags.raw) {
    request.set_text(flags.prompt);
  } else {
    v1::ChatPrompt* chat = request.mutable_chat();
    chat->set_add_generation_prompt(true);
    if (!flags.system.empty()) {
      v1::ChatMessage* message = chat->add_messages();
      message->set_role("system");
      message->set_content(flags.system);
    }
    v1::ChatMessage* message = chat->add_messages();
    message->set_role("user");
    message->set_content(flags.prompt);
  }
  flags.sampling.FillIn(&request);
  return request;
}

absl::Status RunGenerate(const GenerateFlags& flags) {
  std::atomic<Session*> active{nullptr};
  // Before the session: its threads must not receive the signals.
  SignalWaiter signals([&active](int, int count) {
    Session* session = active.load();
    if (count > 1 || session == nullptr || !session->client().Cancel()) ::_exit(130);
  });
  HEARTH_ASSIGN_OR_RETURN(const auto session, Session::Open(flags.session));
  active = session.get();
  const auto finish = session->client().Generate(MakeRequest(flags), [](std::string_view piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  });
  std::fputc('\n', stdout);
  return finish.status();
}

}  // namespace

void AddGenerate(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = app.add_subcommand("generate", "Answers one prompt");
  command->add_option("prompt", flags->prompt, "The user's message")->required();
  command->add_option("--system", flags->system, "A system message before it");
  command->add_flag("--raw", flags->raw, "Continue the text itself, without the chat template");
  command->add_option("--model", flags->session.model,
                      "Checkpoint folder: where no cluster runs, start one for this answer");
  command->add_option("--run-dir", flags->session.run_dir, "Run directory of the cluster");
  command->add_option("--worker", flags->session.worker, "Address of a worker (unix:SOCKET)");
  flags->sampling.AddTo(*command);
  command->callback([flags, exit_code] {
    const absl::Status status = RunGenerate(*flags);
    *exit_code = status.ok() ? 0 : Fail("generate", status);
  });
}

}  // namespace hearth::cli
