// Reservation: a segment that doesn't fit is refused before a byte is filled, with need, have and
// what to change.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <functional>

#include "common/experts/memory_room.h"
#include "common/experts/testing.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers

void Put(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

TEST(Room, TightestControlGroupOfVersion2Wins) {
  const TempFolder folder;
  Put(folder / "proc", "0::/outer/inner\n");
  Put(folder / "cg/outer/memory.max", "1000000\n");
  Put(folder / "cg/outer/memory.current", "900000\n");
  Put(folder / "cg/outer/memory.stat", "inactive_file 50000\nactive_file 10000\n");
  Put(folder / "cg/outer/inner/memory.max", "max\n");
  Put(folder / "cg/outer/inner/memory.current", "5\n");
  const auto room = CgroupRoom(folder / "proc", folder / "cg");
  ASSERT_TRUE(room);
  EXPECT_EQ(room->bytes, 160000u);
  EXPECT_THAT(room->limited_by, HasSubstr("control group /outer"));
}

TEST(Room, Version1IsReadAsWell) {
  const TempFolder folder;
  Put(folder / "proc", "5:devices:/\n4:memory:/box\n0::/\n");
  Put(folder / "cg/memory/box/memory.limit_in_bytes", "5000\n");
  Put(folder / "cg/memory/box/memory.usage_in_bytes", "4000\n");
  Put(folder / "cg/memory/box/memory.stat", "total_inactive_file 500\ntotal_active_file 0\n");
  Put(folder / "cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Put(folder / "cg/memory/memory.usage_in_bytes", "4000\n");
  const auto room = CgroupRoom(folder / "proc", folder / "cg");
  ASSERT_TRUE(room);
  EXPECT_EQ(room->bytes, 1500u);
}

TEST(Room, NothingWhereNothingLimits) {
  const TempFolder folder;
  Put(folder / "proc", "0::/\n");
  EXPECT_FALSE(CgroupRoom(folder / "proc", folder / "cg"));
  EXPECT_FALSE(CgroupRoom(folder / "none", folder / "cg"));
}

TEST(Room, MoreThanTheMachineHasIsRefusedWithNumbers) {
  EXPECT_THAT(CheckRoom(uint64_t{1} << 50, "/tmp"),
              IsStatus(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("need 1073741824.0 MiB"), HasSubstr("leaves"))));
  EXPECT_OK(CheckRoom(1, "/tmp"));
}

TEST(Reserve, PlanBeyondMemoryLeavesNothingBehind) {
  const TempFolder folder;
  SegmentPlan plan = TestPlan();
  plan.payload_bytes[0] = uint64_t{1} << 50;
  EXPECT_THAT(SegmentWriter::Create(folder / "s", plan),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("the experts need")));
  EXPECT_TRUE(fs::is_empty(folder.path()));
  plan.payload_bytes[0] = ~uint64_t{0} - 100;
  EXPECT_THAT(SegmentWriter::Create(folder / "s", plan),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("64-bit")));
}

TEST(Reserve, StopEndsTheReservation) {
  const TempFolder folder;
  std::stop_source stop;
  stop.request_stop();
  EXPECT_THAT(SegmentWriter::Create(folder / "s", TestPlan(), stop.get_token()),
              IsStatus(absl::StatusCode::kCancelled, HasSubstr("")));
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

// Runs `body` in a child with a tmpfs of `bytes` at `mount`; its exit status, or -1 where that is
// not permitted.
int OnTmpfs(const fs::path& mount, uint64_t bytes, const std::function<int()>& body) {
  constexpr int kNotPermitted = 99;
  const pid_t child = ::fork();
  if (child == 0) {
    const std::string options = absl::StrCat("mode=700,size=", bytes);
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", mount.c_str(), "tmpfs", 0, options.c_str()) != 0) {
      ::_exit(kNotPermitted);
    }
    ::_exit(body());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
  return WEXITSTATUS(status) == kNotPermitted ? -1 : WEXITSTATUS(status);
}

TEST(Reserve, TmpfsThatIsTooSmallIsRefusedBeforeFilling) {
  const TempFolder folder;
  ASSERT_OK_AND_ASSIGN(const auto whole, SegmentWriter::Create(folder / "s", TestPlan()));
  const uint64_t need = whole->info().total_bytes;
  const fs::path mount = folder / "mount";
  fs::create_directory(mount);
  for (const uint64_t have : {need / 2, need * 9 / 10 / 4096 * 4096, need - 4096}) {
    const int status = OnTmpfs(mount, have, [&] {
      const auto got = SegmentWriter::Create(mount / "s", TestPlan());
      if (got.status().code() != absl::StatusCode::kResourceExhausted) return 1;
      const std::string message(got.status().message());
      if (message.find("free space on") == std::string::npos) return 2;
      return fs::is_empty(mount) ? 0 : 3;
    });
    if (status < 0) GTEST_SKIP() << "mounting a tmpfs needs CAP_SYS_ADMIN";
    EXPECT_EQ(status, 0) << have;
  }
  EXPECT_EQ(OnTmpfs(mount, need,
                    [&] { return SegmentWriter::Create(mount / "s", TestPlan()).ok() ? 0 : 1; }),
            0);
}

// The free-space check can be out of date when another process takes the rest: the reservation
// itself must say it too.
TEST(Reserve, FullTmpfsIsAnErrorNotASignal) {
  const TempFolder folder;
  const fs::path mount = folder / "mount";
  fs::create_directory(mount);
  const int status = OnTmpfs(mount, 1 << 20, [&] {
    const UniqueFd fd(::open((mount / "f").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    const absl::Status got = ReserveBytes(fd.get(), 2 << 20, {});
    return got.code() == absl::StatusCode::kResourceExhausted &&
                   got.message().find("full after") != absl::string_view::npos
               ? 0
               : 1;
  });
  if (status < 0) GTEST_SKIP() << "mounting a tmpfs needs CAP_SYS_ADMIN";
  EXPECT_EQ(status, 0);
}

TEST(IsInMemory, IsTrueForATmpfsAlone) {
  EXPECT_TRUE(IsInMemory("/dev/shm"));
  EXPECT_FALSE(IsInMemory("/proc"));
  EXPECT_FALSE(IsInMemory("/dev/shm/no such folder"));
}

}  // namespace
}  // namespace hearth
