#include "services/gpu-worker/sampling/stop_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace hearth::worker {
namespace {

TEST(StopMatcher, WithoutStopStringsTextPasses) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("anything"), "anything");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, HoldsBackOnlyWhatCouldBegin) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("abE"), "ab");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("x"), "ENx");
  EXPECT_EQ(matcher.Push("EE"), "E");
  EXPECT_EQ(matcher.Push("NDrest"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.stop_string(), "END");
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, FlushGivesTheUnfinishedBeginning) {
  StopMatcher matcher({"\n\nUser:"});
  EXPECT_EQ(matcher.Push("hi\n\nUs"), "hi");
  EXPECT_EQ(matcher.Flush(), "\n\nUs");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, FallsBackInsideSelfSimilarStrings) {
  StopMatcher matcher({"aabaac"});
  EXPECT_EQ(matcher.Push("aabaab"), "aab");
  EXPECT_EQ(matcher.Push("aacz"), "");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcher, FirstToEndWinsThenTheLongest) {
  StopMatcher inner({"abcdef", "cd"});
  EXPECT_EQ(inner.Push("abcdef"), "ab");
  EXPECT_EQ(inner.stop_string(), "cd");
  StopMatcher longest({"d", "bcd", "cd"});
  EXPECT_EQ(longest.Push("abcd"), "a");
  EXPECT_EQ(longest.stop_string(), "bcd");
}

// Against the obvious algorithm over the whole text, however it is cut into pieces.
TEST(StopMatcher, CuttingIntoPiecesChangesNothing) {
  std::mt19937 random(20240611);
  int matches = 0;
  for (int round = 0; round < 2000; ++round) {
    const auto letters = [&](size_t n) {
      std::string text;
      for (size_t i = 0; i < n; ++i) text.push_back(static_cast<char>('a' + random() % 3));
      return text;
    };
    const std::vector<std::string> stops = {letters(1 + random() % 5), letters(3 + random() % 4)};
    const std::string text = letters(random() % 30);
    size_t end = std::string::npos, start = text.size();
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      if (at + stop.size() < end) {
        end = at + stop.size();
        start = at;
      } else if (at + stop.size() == end) {
        start = std::min(start, at);
      }
    }
    StopMatcher matcher(stops);
    std::string got;
    for (size_t i = 0; i < text.size();) {
      const size_t n = 1 + random() % 4;
      got += matcher.Push(text.substr(i, n));
      EXPECT_TRUE(text.substr(0, start).starts_with(got));
      i += n;
    }
    got += matcher.Flush();
    EXPECT_EQ(got, text.substr(0, start)) << text << " / " << stops[0] << " / " << stops[1];
    EXPECT_EQ(matcher.matched(), end != std::string::npos);
    matches += matcher.matched();
  }
  EXPECT_GT(matches, 500);
  EXPECT_LT(matches, 1900);
}

}  // namespace
}  // namespace hearth::worker
