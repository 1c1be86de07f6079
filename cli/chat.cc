// `hearth chat`: a conversation on the terminal, or from piped lines.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/client/sampling_flags.h"
#include "cli/client/session.h"
#include "cli/commands.h"
#include "common/base/signals.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace hearth::cli {
namespace {

struct ChatFlags {
  std::string system;
  SessionOptions session;
  SamplingFlags sampling;
};

// Lines of standard input; gives up when the descriptor `interrupt` becomes readable.
class LineReader {
 public:
  explicit LineReader(int interrupt) : interrupt_(interrupt) {}

  std::optional<std::string> Next() {
    while (true) {
      if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      pollfd polled[2] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_, POLLIN, 0}};
      if (::poll(polled, 2, -1) < 0 && errno == EINTR) continue;
      if (polled[1].revents != 0) return std::nullopt;
      char bytes[4096];
      const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
      if (n > 0) {
        buffer_.append(bytes, static_cast<size_t>(n));
      } else if (buffer_.empty()) {
        return std::nullopt;
      } else {
        buffer_ += '\n';  // the last line has no end
      }
    }
  }

 private:
  int interrupt_;
  std::string buffer_;
};

class Conversation {
 public:
  explicit Conversation(const ChatFlags& flags) : flags_(flags) { Reset(); }

  void Reset() {
    prompt_.Clear();
    prompt_.set_add_generation_prompt(true);
    if (!flags_.system.empty()) Add("system", flags_.system);
  }

  // One turn. A cancelled or failed answer is not remembered, nor is its question.
  absl::Status Ask(WorkerClient& client, const std::string& text) {
    Add("user", text);
    v1::GenerateRequest request;
    request.set_request_id(absl::StrCat("chat-", ::getpid(), "-", ++n_turns_));
    *request.mutable_chat() = prompt_;
    flags_.sampling.FillIn(&request);
    std::string answer;
    const auto finish = client.Generate(request, [&answer](std::string_view piece) {
      answer += piece;
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
    });
    std::fputc('\n', stdout);
    if (!finish.ok()) {
      prompt_.mutable_messages()->RemoveLast();
      return finish.status();
    }
    Add("assistant", answer);
    return absl::OkStatus();
  }

 private:
  void Add(const std::string& role, const std::string& content) {
    v1::ChatMessage* message = prompt_.add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  const ChatFlags& flags_;
  v1::ChatPrompt prompt_;
  int n_turns_ = 0;
};

void ShowPrompt(bool is_terminal) {
  if (!is_terminal) return;
  std::fputs("> ", stdout);
  std::fflush(stdout);
}

absl::Status RunChat(const ChatFlags& flags) {
  const UniqueFd interrupt(::eventfd(0, EFD_CLOEXEC));
  std::atomic<Session*> active{nullptr};
  SignalWaiter signals([&](int, int) {
    Session* session = active.load();
    if (session == nullptr) ::_exit(130);
    if (session->client().Cancel()) return;  // ends the answer, not the chat
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = ::write(interrupt.get(), &one, sizeof one);
  });
  HEARTH_ASSIGN_OR_RETURN(const auto session, Session::Open(flags.session));
  active = session.get();
  const bool is_terminal = ::isatty(STDIN_FILENO) != 0;
  if (is_terminal) std::puts("/reset forgets the conversation, /exit or Ctrl-D ends it.");
  LineReader lines(interrupt.get());
  Conversation conversation(flags);
  absl::Status last;
  for (ShowPrompt(is_terminal); const auto line = lines.Next(); ShowPrompt(is_terminal)) {
    if (*line == "/exit") break;
    if (*line == "/reset") {
      conversation.Reset();
    } else if (!line->empty()) {
      last = conversation.Ask(session->client(), *line);
      if (absl::IsCancelled(last)) last = absl::OkStatus();
      if (!last.ok()) Fail("chat", last);
    }
  }
  return last;
}

}  // namespace

void AddChat(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "A conversation; lines from standard input");
  command->add_option("--system", flags->system, "A system message at the beginning");
  command->add_option("--model", flags->session.model,
                      "Checkpoint folder: where no cluster runs, start one for this chat");
  command->add_option("--run-dir", flags->session.run_dir, "Run directory of the cluster");
  command->add_option("--worker", flags->session.worker, "Address of a worker (unix:SOCKET)");
  flags->sampling.AddTo(*command);
  command->callback([flags, exit_code] {
    const absl::Status status = RunChat(*flags);
    *exit_code = status.ok() ? 0 : Fail("chat", status);
  });
}

}  // namespace hearth::cli
