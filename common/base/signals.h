// SIGTERM and SIGINT as something to wait for. SIGPIPE is ignored.
#pragma once

#include <functional>
#include <memory>
#include <thread>

namespace hearth {

// Blocks the two signals for the whole process and runs `on_signal(number, count)` on a thread of
// its own at each one (count starts at 1: a second signal usually means "end at once"). Make it in
// main() before any other thread.
class SignalWaiter {
 public:
  explicit SignalWaiter(std::function<void(int number, int count)> on_signal);
  ~SignalWaiter();

 private:
  int stop_pipe_[2] = {-1, -1};
  std::thread thread_;
};

// Prints one clear line and ends the process with status 135 when a mapping fails under us
// (SIGBUS): a truncated or vanished segment is no reason to dump core. `what` must outlive the
// process ("segment /dev/shm/...").
void InstallSigbusMessage(const char* what);

}  // namespace hearth
