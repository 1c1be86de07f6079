#include <atomic>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <vector>

#include "common/base/checked.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/thread_pool.h"
#include "common/testing/status_matchers.h"

namespace hearth {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

TEST(CheckedMath, OverflowGivesNothing) {
  EXPECT_EQ(CheckedMul(1ull << 32, 1ull << 31), 1ull << 63);
  EXPECT_EQ(CheckedMul(1ull << 32, 1ull << 32), std::nullopt);
  EXPECT_EQ(CheckedAdd(~0ull, 1), std::nullopt);
  EXPECT_EQ(CheckedProduct(std::vector<uint64_t>{}), 1u);
  EXPECT_EQ(CheckedProduct(std::vector<uint64_t>{1ull << 40, 1ull << 40, 0}), std::nullopt);
  EXPECT_EQ(CheckedAlignUp(65, 64), 128u);
  EXPECT_EQ(CheckedAlignUp(~0ull, 64), std::nullopt);
}

TEST(ParseJson, ErrorsSayWhere) {
  EXPECT_OK(ParseJson(R"({"a": [1, 2.5, "x"]})"));
  EXPECT_THAT(ParseJson("[1, }"),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("byte 4")));
  EXPECT_THAT(ParseJson("1 2"), IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("extra")));
  EXPECT_FALSE(ParseJson("\"\xff\"").ok());
  EXPECT_FALSE(ParseJson("").ok());
}

TEST(ParseJson, DeepNestingIsRefusedNotRecursed) {
  EXPECT_OK(ParseJson(std::string(60, '[') + std::string(60, ']')));
  EXPECT_FALSE(ParseJson(std::string(10000, '[') + std::string(10000, ']')).ok());
}

TEST(ThreadPool, EveryIndexRunsOnce) {
  ThreadPool pool(4);
  for (const int n : {0, 1, 3, 1000}) {
    std::vector<std::atomic<int>> count(static_cast<size_t>(n));
    pool.ParallelFor(n, [&](int i) { ++count[static_cast<size_t>(i)]; });
    for (const auto& c : count) EXPECT_EQ(c, 1);
  }
}

TEST(ThreadPool, ManyShortLoopsDoNotMix) {
  ThreadPool pool(3);
  for (int round = 0; round < 2000; ++round) {
    std::atomic<int> sum{0};
    pool.ParallelFor(7, [&](int i) { sum += i + round; });
    ASSERT_EQ(sum, 21 + 7 * round);
  }
}

TEST(Files, ErrorsNameThePath) {
  const auto dir =
      std::filesystem::temp_directory_path() / ("hearth-base-" + std::to_string(::getpid()));
  ASSERT_OK(MakePrivateDirectory(dir));
  EXPECT_THAT(MappedFile::OpenReadOnly(dir / "none"),
              IsStatus(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_THAT(MappedFile::OpenReadOnly(dir),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("not a regular file")));
  ASSERT_OK(WriteFileAtomically(dir / "file", "hello"));
  EXPECT_EQ(*ReadFile(dir / "file", 5), "hello");
  EXPECT_THAT(ReadFile(dir / "file", 4),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("the limit is 4")));
  EXPECT_EQ(MappedFile::OpenReadOnly(dir / "file")->bytes().size(), 5u);
  std::filesystem::permissions(dir, std::filesystem::perms::all);
  EXPECT_FALSE(MakePrivateDirectory(dir).ok());
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace hearth
