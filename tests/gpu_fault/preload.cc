// A library to be preloaded into a running cluster (LD_PRELOAD) by tools/gpu_bundle/faults.py: in a
// gpu-worker it waits until somebody opens the pipe $HEARTH_TEST_GPU_FAULT for writing, and breaks
// the GPU's context under it. The worker's own program is the product's, unchanged.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>

#include "tests/gpu_fault/gpu_fault.h"

namespace {

constexpr std::string_view kProgram = "/hearth-gpu-worker";

bool IsWorker() {
  char path[4096];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof(path));
  return n > 0 && std::string_view(path, static_cast<size_t>(n)).ends_with(kProgram);
}

void BreakWhenAsked(const std::string& pipe) {
  const int fd = ::open(pipe.c_str(), O_RDONLY | O_CLOEXEC);  // until there is a writer
  if (fd < 0) {
    std::perror("test: opening the pipe that asks for a fault");
    return;
  }
  cudaError_t error = hearth::testing::PrepareGpuFault();
  if (error == cudaSuccess) {
    error = hearth::testing::BreakGpu(hearth::testing::GpuFault::kIllegalAddress);
  }
  std::fprintf(stderr, "test: a kernel writes to an illegal address (%s)\n",
               cudaGetErrorName(error));
  ::close(fd);
}

// Before main. The thread is detached, for it ends with the process at the latest, and takes no
// signal: those are the worker's.
const bool kIsWaiting = [] {
  const char* pipe = std::getenv("HEARTH_TEST_GPU_FAULT");
  if (pipe == nullptr || !IsWorker()) return false;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread(BreakWhenAsked, std::string(pipe)).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return true;
}();

}  // namespace
