#include "services/expert-store/usage/usage_profile.h"

#include <fstream>
#include <limits>

#include "common/experts/testing.h"
#include "common/testing/status_matchers.h"

namespace hearth::store {
namespace {

using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers

ProfileShape Shape(const std::string& fingerprint = "ab") {
  return {fingerprint, 4, 2, {true, false, true}};
}

std::vector<std::vector<uint64_t>> Rows(const std::vector<UseCount>& uses) {
  std::vector<std::vector<uint64_t>> rows;
  for (const UseCount& use : uses) rows.push_back({use.layer, use.expert, use.count});
  return rows;
}

TEST(UsageProfile, CountsSurviveARestart) {
  const TempFolder folder;
  {
    UsageProfile profile;
    ASSERT_OK(profile.Open(folder / "profile.json", Shape()));
    const UseCount uses[] = {{0, 1, 5}, {0, 3, 7}, {2, 0, 18446744073709551610u}, {0, 1, 1}};
    ASSERT_OK(profile.Add(uses));
    ASSERT_OK(profile.SaveIfChanged());
  }
  UsageProfile profile;
  ASSERT_OK(profile.Open(folder / "profile.json", Shape()));
  EXPECT_EQ(Rows(profile.Top(0)), (std::vector<std::vector<uint64_t>>{
                                      {0, 3, 7}, {0, 1, 6}, {2, 0, 18446744073709551610u}}));
  EXPECT_EQ(Rows(profile.Top(1)),
            (std::vector<std::vector<uint64_t>>{{0, 3, 7}, {2, 0, 18446744073709551610u}}));
}

TEST(UsageProfile, TokensAreALayersCountsOverTopK) {
  const TempFolder folder;
  UsageProfile profile;
  ASSERT_OK(profile.Open(folder / "p", Shape()));
  const UseCount uses[] = {{0, 1, 6}, {0, 2, 4}, {2, 0, 9}};
  ASSERT_OK(profile.Add(uses));
  EXPECT_EQ(profile.Tokens(), 5u);
}

TEST(UsageProfile, IdsThatTheModelDoesNotHaveAddNothing) {
  const TempFolder folder;
  UsageProfile profile;
  ASSERT_OK(profile.Open(folder / "p", Shape()));
  for (const UseCount& bad : {UseCount{3, 0, 1}, UseCount{1, 0, 1}, UseCount{0, 4, 1},
                              UseCount{4294967295u, 4294967295u, 1}}) {
    const UseCount uses[] = {{0, 0, 1}, bad};
    EXPECT_THAT(profile.Add(uses),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("usage.")));
  }
  EXPECT_TRUE(profile.Top(0).empty());
}

TEST(UsageProfile, SumsStopAtTheirMaximum) {
  const TempFolder folder;
  UsageProfile profile;
  ASSERT_OK(profile.Open(folder / "p", Shape()));
  const UseCount uses[] = {{0, 0, std::numeric_limits<uint64_t>::max()}, {0, 0, 9}, {0, 1, 9}};
  ASSERT_OK(profile.Add(uses));
  EXPECT_EQ(profile.Top(1)[0].count, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(profile.Tokens(), std::numeric_limits<uint64_t>::max() / 2);
}

TEST(UsageProfile, OtherCheckpointsAndBrokenFilesStartFromZeroAndSayWhy) {
  const TempFolder folder;
  const struct {
    const char* text;
    const char* why;
  } cases[] = {
      {R"({"fingerprint":"cd","counts":[]})", "counts of checkpoint cd, wanted is ab"},
      {"{", "byte"},
      {"[]", "no \"fingerprint\""},
      {R"({"fingerprint":"ab","counts":[[0,1]]})", "not [layer, expert, count]"},
      {R"({"fingerprint":"ab","counts":[[0,0,3],[0,-1,1]]})", "out of range"},
      {R"({"fingerprint":"ab","counts":[[0,0,3],[9,0,1]]})", "usage.layer 9"},
  };
  for (const auto& c : cases) {
    std::ofstream(folder / "p") << c.text;
    UsageProfile profile;
    const absl::Status status = profile.Open(folder / "p", Shape());
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.why)) << c.text;
    EXPECT_TRUE(profile.Top(0).empty()) << c.text;
    const UseCount use[] = {{0, 0, 1}};
    EXPECT_OK(profile.Add(use));
  }
}

TEST(UsageProfile, ReportsBeforeTheModelIsKnownAreUnavailable) {
  UsageProfile profile;
  EXPECT_THAT(profile.Add({}), IsStatus(absl::StatusCode::kUnavailable, HasSubstr("")));
}

}  // namespace
}  // namespace hearth::store
