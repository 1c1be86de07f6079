// Child processes of tests: started with their output in a file, waited for with a deadline, killed
// at the end.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "common/base/unique_fd.h"

namespace hearth::testing {

inline constexpr auto kProcessDeadline = std::chrono::seconds(30);
inline constexpr int kStillRunning = -1;

inline std::string Slurp(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

class Process {
 public:
  // Standard output and error go to `log`, which is emptied first.
  Process(std::vector<std::string> arguments, const std::filesystem::path& log) {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      ::dup2(fd, STDOUT_FILENO);
      ::dup2(fd, STDERR_FILENO);
      ::execvp(argv[0], argv.data());
      ::_exit(127);
    }
    pidfd_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  }
  ~Process() {
    if (Wait(std::chrono::seconds(0)) != kStillRunning) return;
    Signal(SIGKILL);
    Wait(kProcessDeadline);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void Signal(int number) const { ::kill(pid_, number); }
  // Exit status, 128 + signal, or kStillRunning.
  int Wait(std::chrono::milliseconds timeout) {
    if (status_) return *status_;
    pollfd polled{pidfd_.get(), POLLIN, 0};
    if (::poll(&polled, 1, static_cast<int>(timeout.count())) <= 0) return kStillRunning;
    int status = 0;
    ::waitpid(pid_, &status, 0);
    status_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return *status_;
  }
  int Stop(int number) {
    Signal(number);
    return Wait(kProcessDeadline);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
  UniqueFd pidfd_;
  std::optional<int> status_;
};

}  // namespace hearth::testing
