// Segments in huge pages: on a tmpfs of our own, on one that a user mounted, on a hugetlbfs.
#include "common/experts/huge_tmpfs.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <fstream>
#include <functional>

#include "common/base/huge_pages.h"
#include "common/experts/memory_room.h"
#include "common/experts/testing.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers

// Experts of 3 * 96 KiB: a segment of several huge pages.
SegmentPlan BigPlan() {
  SegmentPlan plan{.fingerprint = "0123abcd", .n_layers = 2, .n_experts = 16, .payload_bytes = {}};
  plan.payload_bytes.assign(32, *PackedExpertBytes(FakeExpert(0, 256, 768).ref()));
  return plan;
}

absl::Status Fill(SegmentWriter& writer) {
  for (int i = 0; i < 32; ++i) {
    const FakeExpert expert(static_cast<uint32_t>(i), 256, 768);
    if (auto status = writer.Write(i / 16, i % 16, expert.ref()); !status.ok()) return status;
  }
  return writer.MarkReady();
}

bool HugePagesExist() { return fs::exists("/sys/kernel/mm/transparent_hugepage"); }

// Runs `body` in a child, as it may change who and where it is; its exit status.
int InChild(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
constexpr int kNotPermitted = 99;

// While other programs hold much memory, the system may have no huge page free at once.
constexpr int kAttempts = 20;

int TrySegmentIn(const fs::path& folder) {
  const auto writer = SegmentWriter::Create(folder / "s", BigPlan());
  if (!writer.ok() || !Fill(**writer).ok()) return 1;
  const auto reader = SegmentReader::Open(folder / "s", "0123abcd");
  if (!reader.ok()) return 2;
  const uint64_t whole = (*reader)->bytes() / kHugePageBytes * kHugePageBytes;
  if ((*writer)->HugeBytes() < whole) return 3;
  if ((*reader)->HugeBytes() < whole) return 4;
  return (*reader)->Expert(1, 15).ok() ? 0 : 5;
}

// A segment made, filled and read in `folder` lies in huge pages as a whole; 0 if so.
int CheckSegmentIn(const fs::path& folder) {
  int status = TrySegmentIn(folder);
  for (int i = 1; i < kAttempts && (status == 3 || status == 4); ++i) {
    status = TrySegmentIn(folder);
  }
  return status;
}

TEST(HugeTmpfs, SegmentLiesInHugePagesAndEndsWithTheLastDescriptor) {
  auto tmpfs = OpenHugeTmpfs();
  if (!tmpfs.ok()) GTEST_SKIP() << tmpfs.status();
  ASSERT_TRUE(HugePagesExist());
  const fs::path folder = FdFolder(tmpfs->get());
  EXPECT_EQ(CheckSegmentIn(folder), 0);
  EXPECT_OK(SegmentWriter::OpenExisting(folder / "s")) << "a restarted store adopts it";
  struct stat info {};
  ASSERT_EQ(::stat(folder.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
  tmpfs->Reset();
  EXPECT_FALSE(fs::exists(folder / "s"));
}

TEST(HugeTmpfs, NeedsNoRights) {
  if (::geteuid() != 0) GTEST_SKIP() << "the test above runs without rights";
  // Whether user namespaces may be made at all is the machine's choice.
  constexpr uid_t kNobody = 65534;
  const int status = InChild([] {
    if (::setresgid(kNobody, kNobody, kNobody) != 0 || ::setresuid(kNobody, kNobody, kNobody) != 0)
      return kNotPermitted;
    ::prctl(PR_SET_DUMPABLE, 1);  // as after exec
    const auto tmpfs = OpenHugeTmpfs();
    if (!tmpfs.ok()) {
      return tmpfs.status().message().find("user namespace") != absl::string_view::npos
                 ? kNotPermitted
                 : 10;
    }
    return CheckSegmentIn(FdFolder(tmpfs->get()));
  });
  if (status == kNotPermitted) GTEST_SKIP() << "unprivileged user namespaces are refused here";
  EXPECT_EQ(status, 0);
}

TEST(HugeTmpfs, MemoryOfOneProcessLiesThereToo) {
  if (!OpenHugeTmpfs().ok()) GTEST_SKIP() << "no tmpfs of our own";
  bool is_whole = false;
  for (int i = 0; i < kAttempts && !is_whole; ++i) {
    ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::CreateInMemory(BigPlan()));
    ASSERT_OK(Fill(*writer));
    ASSERT_OK_AND_ASSIGN(const auto reader, writer->OpenReader());
    is_whole = reader->HugeBytes() >= reader->bytes() / kHugePageBytes * kHugePageBytes;
  }
  EXPECT_TRUE(is_whole);
}

class MountedTest : public ::testing::TestWithParam<const char*> {};
TEST_P(MountedTest, TmpfsThatGivesHugePagesIsUsedAsItShould) {
  const TempFolder folder("/tmp");
  const int status = InChild([&] {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, GetParam()) != 0) {
      return kNotPermitted;
    }
    return CheckSegmentIn(folder.path());
  });
  if (status == kNotPermitted) GTEST_SKIP() << "mounting needs CAP_SYS_ADMIN";
  EXPECT_EQ(status, 0);
}
INSTANTIATE_TEST_SUITE_P(Options, MountedTest, ::testing::Values("huge=advise", "huge=always"));

TEST(HugePagePool, RoomIsWhatIsFreeAndNotPromised) {
  const TempFolder folder;
  fs::create_directories(folder / "hugepages-2048kB");
  std::ofstream(folder / "hugepages-2048kB/free_hugepages") << "10\n";
  std::ofstream(folder / "hugepages-2048kB/resv_hugepages") << "3\n";
  EXPECT_EQ(HugePagePoolRoom(2 << 20, folder.path())->bytes, uint64_t{14} << 20);
  EXPECT_FALSE(HugePagePoolRoom(1 << 30, folder.path()));
}

TEST(HugePagePool, SegmentOnAHugetlbfsIsWholePages) {
  const auto room = HugePagePoolRoom(2 << 20);
  const TempFolder folder;
  if (!room || room->bytes < (32 << 20)) GTEST_SKIP() << "no 16 huge pages are reserved";
  const int status = InChild([&] {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("hugetlbfs", folder.path().c_str(), "hugetlbfs", 0, "pagesize=2M") != 0) {
      return kNotPermitted;
    }
    return CheckSegmentIn(folder.path());
  });
  if (status == kNotPermitted) GTEST_SKIP() << "mounting needs CAP_SYS_ADMIN";
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace hearth
