#include "common/base/signals.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/base/unique_fd.h"

namespace hearth {
namespace {

std::atomic<const char*> sigbus_message{nullptr};

void WriteAll(const char* text) {
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
}

// Async-signal-safe: two writes and an exit.
void OnSigbus(int) {
  WriteAll("memory under a mapping vanished (SIGBUS): ");
  WriteAll(sigbus_message.load());
  WriteAll(" was truncated or its file system is full; restart the service\n");
  ::_exit(135);
}

}  // namespace

SignalWaiter::SignalWaiter(std::function<void(int number, int count)> on_signal) {
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  HEARTH_CHECK(::pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC));
  HEARTH_CHECK(fd.valid());
  HEARTH_CHECK(::pipe2(stop_pipe_, O_CLOEXEC) == 0);
  thread_ =
      std::thread([fd = std::move(fd), stop = stop_pipe_[0], on_signal = std::move(on_signal)] {
        int count = 0;
        while (true) {
          pollfd polled[2] = {{fd.get(), POLLIN, 0}, {stop, POLLIN, 0}};
          if (::poll(polled, 2, -1) < 0) continue;  // EINTR
          if (polled[1].revents != 0) return;
          signalfd_siginfo info{};
          if (::read(fd.get(), &info, sizeof info) != sizeof info) continue;
          on_signal(static_cast<int>(info.ssi_signo), ++count);
        }
      });
}

SignalWaiter::~SignalWaiter() {
  ::close(stop_pipe_[1]);
  thread_.join();
  ::close(stop_pipe_[0]);
}

void InstallSigbusMessage(const char* what) {
  sigbus_message = what;
  struct sigaction action {};
  action.sa_handler = OnSigbus;
  HEARTH_CHECK(::sigaction(SIGBUS, &action, nullptr) == 0);
}

}  // namespace hearth
