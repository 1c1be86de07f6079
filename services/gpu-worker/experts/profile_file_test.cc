#include "services/gpu-worker/experts/profile_file.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/testing/status_matchers.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

class ProfileFileTest : public ::testing::Test {
 protected:
  ~ProfileFileTest() override { std::filesystem::remove(file_); }
  absl::StatusOr<std::vector<ExpertUses>> Read(std::string_view text,
                                               std::string_view wanted = "") {
    EXPECT_OK(WriteFileAtomically(file_, text));
    return ReadProfileFile(file_, wanted);
  }
  const std::filesystem::path file_ = absl::StrCat("/tmp/hearth-profile-", ::getpid(), ".json");
};

TEST_F(ProfileFileTest, WhatIsWrittenIsRead) {
  const ExpertUses uses[] = {{0, 3, 17}, {47, 511, uint64_t{1} << 40}};
  ASSERT_OK_AND_ASSIGN(const auto read, Read(ProfileText("ab12", uses), "ab12"));
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(read[0].expert, 3);
  EXPECT_EQ(read[0].count, 17u);
  EXPECT_EQ(read[1].layer, 47);
  EXPECT_EQ(read[1].count, uint64_t{1} << 40);
  EXPECT_OK(Read(ProfileText("ab12", uses)));
  EXPECT_THAT(
      Read(ProfileText("ab12", uses), "cd"),
      IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("counts of checkpoint ab12")));
}

TEST_F(ProfileFileTest, WhatIsNoProfileIsRefused) {
  for (const char* text :
       {"", "[]", "{}", R"({"fingerprint":"a"})", R"({"fingerprint":1,"counts":[]})",
        R"({"fingerprint":"a","counts":[[0,1]]})", R"({"fingerprint":"a","counts":[[0,-1,1]]})",
        R"({"fingerprint":"a","counts":[[0,1,2.5]]})",
        R"({"fingerprint":"a","counts":[[99999999999,1,2]]})"}) {
    EXPECT_THAT(Read(text), IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr(".json")))
        << text;
  }
  std::filesystem::remove(file_);
  EXPECT_THAT(ReadProfileFile(file_, ""), IsStatus(absl::StatusCode::kNotFound, ::testing::_));
}

}  // namespace
}  // namespace hearth::worker
