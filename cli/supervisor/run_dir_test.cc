#include "cli/supervisor/run_dir.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "cli/supervisor/child.h"
#include "common/testing/status_matchers.h"

namespace hearth::cli {
namespace {

using ::testing::HasSubstr;

class RunDirTest : public ::testing::Test {
 protected:
  void SetUp() override {
    run_dir_ =
        std::filesystem::temp_directory_path() / absl::StrCat("hearth-run-dir-test-", ::getpid());
    std::filesystem::remove_all(run_dir_);
  }
  void TearDown() override { std::filesystem::remove_all(run_dir_); }

  std::filesystem::path run_dir_;
};

TEST_F(RunDirTest, ASecondLockNamesTheHolder) {
  ASSERT_OK_AND_ASSIGN(const UniqueFd lock, LockRunDir(run_dir_));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT(LockRunDir(run_dir_), testing::IsStatus(absl::StatusCode::kAlreadyExists,
                                                      HasSubstr(absl::StrCat(::getpid()))));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
}

TEST_F(RunDirTest, TheFolderIsPrivate) {
  ASSERT_OK_AND_ASSIGN(const UniqueFd lock, LockRunDir(run_dir_));
  struct stat info {};
  ASSERT_EQ(::stat(run_dir_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

// A killed supervisor's children hold the lock until they are gone: the next start waits for them.
TEST_F(RunDirTest, WaitsForTheChildrenOfADeadHolder) {
  std::optional<Child> child;
  {
    ASSERT_OK_AND_ASSIGN(const UniqueFd lock, LockRunDir(run_dir_));
    auto started = Child::Start(
        {.name = "x", .argv = {"/bin/sleep", "0.3"}, .inherited_fds = {lock.get(), -1}});
    ASSERT_OK(started);
    child = *std::move(started);
    // The holder's pid is that of a process that is gone for sure: a reaped child of ours.
    const pid_t gone = ::fork();
    if (gone == 0) ::_exit(0);
    ::waitpid(gone, nullptr, 0);
    std::ofstream(run_dir_ / "hearth.lock") << gone;
  }
  const int fd = ::open((run_dir_ / "hearth.lock").c_str(), O_RDWR);
  EXPECT_NE(::flock(fd, LOCK_EX | LOCK_NB), 0) << "the child should hold the lock now";
  ::close(fd);
  EXPECT_OK(LockRunDir(run_dir_));
}

TEST_F(RunDirTest, ReadsThePortThatTheGatewayWrote) {
  std::filesystem::create_directories(run_dir_);
  EXPECT_EQ(ReadGatewayPort(run_dir_), std::nullopt);
  std::ofstream(run_dir_ / "gateway.port") << "8123\n";
  EXPECT_EQ(ReadGatewayPort(run_dir_), 8123);
  std::ofstream(run_dir_ / "gateway.port") << "70000";
  EXPECT_EQ(ReadGatewayPort(run_dir_), std::nullopt);
  ForgetGatewayPort(run_dir_);
  EXPECT_FALSE(std::filesystem::exists(run_dir_ / "gateway.port"));
}

TEST(CheckPortIsFree, NamesThePortThatIsTaken) {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(fd.get(), 1), 0);
  socklen_t length = sizeof address;
  ASSERT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  const int port = ::ntohs(address.sin_port);
  EXPECT_THAT(CheckPortIsFree("127.0.0.1", port),
              testing::IsStatus(absl::StatusCode::kAlreadyExists, HasSubstr(absl::StrCat(port))));
  EXPECT_OK(CheckPortIsFree("127.0.0.1", 0));
}

}  // namespace
}  // namespace hearth::cli
