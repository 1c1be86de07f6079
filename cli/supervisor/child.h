// One child process: started with its output in a pipe, dies with us, is reaped once. Used by the
// supervisor and by commands that start a private cluster.
#pragma once

#include <sys/types.h>

#include <array>
#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace hearth::cli {

struct ChildSpec {
  std::string name;               // for people: "gpu-worker"
  std::vector<std::string> argv;  // argv[0] is the path of the program
  // Sent by the kernel to the child when the thread that started it ends. SIGKILL reaches a stopped
  // child too.
  int death_signal = SIGKILL;
  // Descriptors that stay open in the child, -1 for none: the run directory's lock, so that it is
  // held until the last child is gone, whatever happens to the supervisor, and the folder of the
  // segment.
  std::array<int, 2> inherited_fds = {-1, -1};
};

// Moves. The destructor kills a child that still runs. Belongs to one thread.
class Child {
 public:
  Child() = default;
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;
  ~Child();

  // In a process group of its own, so that a terminal's Ctrl-C reaches only the supervisor.
  // NotFound or PermissionDenied when the program cannot be executed.
  static absl::StatusOr<Child> Start(const ChildSpec& spec);

  bool is_running() const { return pid_ > 0; }
  pid_t pid() const { return pid_; }
  // Read end of its stdout and stderr, non-blocking. Stays readable after the child's end.
  int output() const { return output_.get(); }

  void Signal(int number) const;
  // The raw wait status once it has ended; does not block. After that is_running() is false.
  std::optional<int> Reap();

 private:
  pid_t pid_ = -1;
  UniqueFd output_;
};

// "exit code 2", "killed by signal 9 (Killed)".
std::string DescribeWaitStatus(int wait_status);

}  // namespace hearth::cli
