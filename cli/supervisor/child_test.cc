#include "cli/supervisor/child.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/testing/status_matchers.h"

namespace hearth::cli {
namespace {

ChildSpec Shell(const std::string& script) {
  return {.name = "test", .argv = {"/bin/sh", "-c", script}};
}

int WaitFor(Child& child) {
  for (int i = 0; i < 10000; ++i) {
    if (const auto status = child.Reap()) return *status;
    ::poll(nullptr, 0, 1);
  }
  ADD_FAILURE() << "the child did not end within 10 s";
  return -1;
}

std::string ReadAll(const Child& child) {
  std::string text;
  char buffer[256];
  pollfd polled{child.output(), POLLIN, 0};
  while (::poll(&polled, 1, 10000) > 0) {
    const ssize_t n = ::read(child.output(), buffer, sizeof buffer);
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  return text;
}

TEST(Child, ReportsExitCodeAndSignal) {
  ASSERT_OK_AND_ASSIGN(Child three, Child::Start(Shell("exit 3")));
  EXPECT_EQ(DescribeWaitStatus(WaitFor(three)), "exit code 3");
  ASSERT_OK_AND_ASSIGN(Child killed, Child::Start(Shell("kill -9 $$")));
  EXPECT_EQ(DescribeWaitStatus(WaitFor(killed)), "killed by signal 9 (Killed)");
  EXPECT_FALSE(killed.is_running());
}

TEST(Child, OutputOfBothStreamsArrives) {
  ASSERT_OK_AND_ASSIGN(Child child, Child::Start(Shell("echo out; echo err >&2")));
  EXPECT_EQ(ReadAll(child), "out\nerr\n");
}

TEST(Child, AMissingProgramIsAnError) {
  EXPECT_THAT(
      Child::Start({.name = "x", .argv = {"/no/such/program"}}).status(),
      testing::IsStatus(absl::StatusCode::kNotFound, ::testing::HasSubstr("/no/such/program")));
}

TEST(Child, HasAProcessGroupOfItsOwnAndNoStrayDescriptors) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);  // without close-on-exec, as a library might open one
  ASSERT_OK_AND_ASSIGN(Child child,
                       Child::Start(Shell("ls /proc/self/fd | wc -l; ps -o pgid= -p $$ || true")));
  int n_descriptors = 0;
  const std::string text = ReadAll(child);
  ASSERT_TRUE(absl::SimpleAtoi(text.substr(0, text.find('\n')), &n_descriptors)) << text;
  EXPECT_LE(n_descriptors, 4);  // 0, 1, 2 and the folder that ls reads
  EXPECT_NE(::getpgid(child.pid()), ::getpgrp());
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
}

TEST(Child, SignalsAreNotBlockedInIt) {
  sigset_t set, old;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &set, &old);
  ASSERT_OK_AND_ASSIGN(Child child, Child::Start(Shell("exec sleep 60")));
  child.Signal(SIGTERM);
  EXPECT_EQ(DescribeWaitStatus(WaitFor(child)), "killed by signal 15 (Terminated)");
  ::pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

TEST(Child, DiesWithItsParentEvenWhenItIsStopped) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  const pid_t parent = ::fork();
  if (parent == 0) {
    auto child = Child::Start(Shell("exec sleep 60"));
    const pid_t pid = child.ok() ? child->pid() : -1;
    child->Signal(SIGSTOP);
    [[maybe_unused]] const ssize_t n = ::write(pipe_ends[1], &pid, sizeof pid);
    ::raise(SIGKILL);
  }
  pid_t orphan = -1;
  ASSERT_EQ(::read(pipe_ends[0], &orphan, sizeof orphan), static_cast<ssize_t>(sizeof orphan));
  ASSERT_GT(orphan, 0);
  ::waitpid(parent, nullptr, 0);
  const auto is_gone = [orphan] {
    // Whoever inherits it may leave it as a zombie for a while.
    std::ifstream stat(absl::StrCat("/proc/", orphan, "/stat"));
    std::string text((std::istreambuf_iterator<char>(stat)), {});
    return text.empty() || text.find(") Z ") != std::string::npos;
  };
  for (int i = 0; i < 10000 && !is_gone(); ++i) ::poll(nullptr, 0, 1);
  EXPECT_TRUE(is_gone());
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
}

}  // namespace
}  // namespace hearth::cli
