#include "cli/supervisor/console.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/json.h"

namespace hearth::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(LineSplitter, KeepsAnUnfinishedLineForLater) {
  LineSplitter splitter;
  EXPECT_THAT(splitter.Append("one\ntw"), ElementsAre("one"));
  EXPECT_THAT(splitter.Append("o\n\nthree"), ElementsAre("two", ""));
  EXPECT_EQ(splitter.Rest(), "three");
  EXPECT_EQ(splitter.Rest(), "");
}

TEST(LineSplitter, CutsAnEndlessLine) {
  LineSplitter splitter;
  const auto lines = splitter.Append(std::string(2 * LineSplitter::kMaxLine + 1, 'x'));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].size(), LineSplitter::kMaxLine);
  EXPECT_EQ(splitter.Rest(), "x");
}

TEST(ForPeople, ShowsTimeServiceMessageAndFields) {
  EXPECT_EQ(ForPeople(R"({"time":"2030-01-02T03:04:05.678Z","level":"info","service":"gateway",)"
                      R"("message":"listening","port":80})"),
            "03:04:05 gateway: listening port=80");
}

TEST(ForPeople, LeavesOtherTextAlone) {
  EXPECT_EQ(ForPeople("terminate called"), "terminate called");
  EXPECT_EQ(ForPeople("{broken"), "{broken");
}

std::string Captured(const std::function<void()>& action) {
  ::testing::internal::CaptureStderr();
  action();
  return ::testing::internal::GetCapturedStderr();
}

TEST(Console, KeepsJsonLinesAndWrapsOthers) {
  Console console(Console::Style::kJson);
  EXPECT_EQ(Captured([&] { console.Forward("gateway", R"({"a":1})"); }), "{\"a\":1}\n");
  const auto wrapped = ParseJson(Captured([&] { console.Forward("gateway", "oh \"no\""); }));
  ASSERT_TRUE(wrapped.ok());
  EXPECT_EQ(wrapped->at("service"), "gateway");
  EXPECT_EQ(wrapped->at("message"), "oh \"no\"");
}

TEST(Console, PeopleSeeOnlyWarningsUnlessTheyAsk) {
  const char* info = R"({"time":"","level":"info","service":"s","message":"m"})";
  Console quiet(Console::Style::kPeople);
  EXPECT_THAT(Captured([&] { quiet.Forward("s", info); }), IsEmpty());
  Console verbose(Console::Style::kPeopleAll);
  EXPECT_EQ(Captured([&] { verbose.Forward("s", info); }), " s: m\n");
}

TEST(Console, LogsProgressOncePerStep) {
  Console console(Console::Style::kJson);
  EXPECT_THAT(Captured([&] { console.Progress(0.51, "loading"); }), testing::HasSubstr("loading"));
  EXPECT_THAT(Captured([&] { console.Progress(0.52, "loading"); }), IsEmpty());
  EXPECT_THAT(Captured([&] { console.Progress(0.61, "loading"); }),
              testing::HasSubstr("\"percent\":61"));
}

TEST(Console, ALogLineDoesNotMixWithTheProgressBar) {
  Console console(Console::Style::kPeopleAll);
  const std::string text = Captured([&] {
    console.Progress(0.5, "loading");
    console.Forward("s", "plain");
  });
  EXPECT_THAT(text, testing::HasSubstr("\r\033[K"));
  EXPECT_THAT(text, testing::EndsWith("loading"));  // the bar is drawn again below the line
}

}  // namespace
}  // namespace hearth::cli
