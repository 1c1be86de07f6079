#include "cli/supervisor/child.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace hearth::cli {
namespace {

// Everything that the new process needs, prepared before the fork: after it only async-signal-safe
// calls are allowed, because other threads may have held locks.
struct Prepared {
  std::vector<char*> argv{};
  int output = -1;
  int error_pipe = -1;
  std::array<int, 2> inherited_fds = {-1, -1};
  int death_signal = 0;
  pid_t parent = 0;
};

[[noreturn]] void FailInChild(const Prepared& prepared) {
  const int error_number = errno;
  [[maybe_unused]] const ssize_t n =
      ::write(prepared.error_pipe, &error_number, sizeof error_number);
  ::_exit(127);
}

[[noreturn]] void RunInChild(const Prepared& prepared) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, prepared.death_signal);
  if (::getppid() != prepared.parent) ::_exit(127);  // it died before the line above
  for (const int number : {SIGINT, SIGTERM, SIGCHLD, SIGPIPE, SIGHUP}) {
    ::signal(number, SIG_DFL);
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDONLY);
  if (null < 0 || ::dup2(null, STDIN_FILENO) < 0 || ::dup2(prepared.output, STDOUT_FILENO) < 0 ||
      ::dup2(prepared.output, STDERR_FILENO) < 0) {
    FailInChild(prepared);
  }
  ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
  for (const int fd : prepared.inherited_fds) {
    if (fd >= 0) ::fcntl(fd, F_SETFD, 0);
  }
  ::execv(prepared.argv[0], prepared.argv.data());
  FailInChild(prepared);
}

}  // namespace

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), output_(std::move(other.output_)) {}

Child& Child::operator=(Child&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(output_, other.output_);
  return *this;
}

Child::~Child() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

absl::StatusOr<Child> Child::Start(const ChildSpec& spec) {
  int output[2], errors[2];
  if (::pipe2(output, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd output_read(output[0]), output_write(output[1]);
  if (::pipe2(errors, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd error_read(errors[0]), error_write(errors[1]);
  ::fcntl(output_read.get(), F_SETFL, O_NONBLOCK);

  Prepared prepared{.output = output_write.get(),
                    .error_pipe = error_write.get(),
                    .inherited_fds = spec.inherited_fds,
                    .death_signal = spec.death_signal,
                    .parent = ::getpid()};
  for (const std::string& argument : spec.argv) {
    prepared.argv.push_back(const_cast<char*>(argument.c_str()));
  }
  prepared.argv.push_back(nullptr);

  // _Fork runs no atfork handlers: those of libraries may wait for their own threads.
  const pid_t pid = ::_Fork();
  if (pid < 0) return ErrnoStatus(errno, "fork");
  if (pid == 0) RunInChild(prepared);

  Child child;
  child.pid_ = pid;
  child.output_ = std::move(output_read);
  output_write.Reset();
  error_write.Reset();
  int error_number = 0;  // arrives only when exec failed; a successful exec closes the pipe
  if (::read(error_read.get(), &error_number, sizeof error_number) == sizeof error_number) {
    return ErrnoStatus(error_number, absl::StrCat("execute ", spec.argv[0]));
  }
  return child;
}

void Child::Signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

std::optional<int> Child::Reap() {
  int status = 0;
  if (pid_ <= 0 || ::waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  pid_ = -1;
  return status;
}

std::string DescribeWaitStatus(int wait_status) {
  if (WIFEXITED(wait_status)) return absl::StrCat("exit code ", WEXITSTATUS(wait_status));
  const int number = WTERMSIG(wait_status);
  return absl::StrCat("killed by signal ", number, " (", ::strsignal(number), ")");
}

}  // namespace hearth::cli
