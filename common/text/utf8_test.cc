#include "common/text/utf8.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace hearth {
namespace {

std::string Lossy(std::string_view bytes) {
  std::string out;
  AppendUtf8Lossy(bytes, out);
  return out;
}

TEST(Utf8, EveryScalarValueIsOneCharacter) {
  for (char32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string text;
    AppendUtf8(code, text);
    const Utf8Step step = NextUtf8(text, 0);
    ASSERT_EQ(step.kind, Utf8Step::Kind::kCharacter) << static_cast<uint32_t>(code);
    ASSERT_EQ(step.length, text.size());
    ASSERT_EQ(step.code, code);
    for (size_t n = 1; n < text.size(); ++n) {
      ASSERT_EQ(CompletePrefixLength(text.substr(0, n)), 0u);
      ASSERT_EQ(ValidateUtf8(text.substr(0, n)), 0u);
    }
    ASSERT_EQ(CompletePrefixLength(text), text.size());
  }
}

TEST(Utf8, NamesTheFirstBadByte) {
  EXPECT_EQ(ValidateUtf8(""), std::nullopt);
  EXPECT_EQ(ValidateUtf8("a€😀"), std::nullopt);
  EXPECT_EQ(ValidateUtf8("ab\x80"), 2u);
  EXPECT_EQ(ValidateUtf8("\xC0\x80"), 0u);          // overlong
  EXPECT_EQ(ValidateUtf8("a\xE0\x9F\xBF"), 1u);     // overlong
  EXPECT_EQ(ValidateUtf8("\xED\xA0\x80"), 0u);      // surrogate
  EXPECT_EQ(ValidateUtf8("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(ValidateUtf8("\xFF"), 0u);
}

// The examples of the Unicode standard, chapter 3, "U+FFFD substitution of maximal subparts".
TEST(Utf8, ReplacesMaximalSubparts) {
  const std::string r = "\uFFFD";
  EXPECT_EQ(Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                  "A"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
                  "A"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Lossy("\xF4\x91\x92\x93\xFF"
                  "A\x80\xBF"
                  "B"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(Lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                  "A"),
            r + r + r + r + "A");
  EXPECT_EQ(Lossy("\xF0\x9F\x98"), r);
}

TEST(Utf8, CompletePrefixEndsBeforeAnUnfinishedCharacterOnly) {
  EXPECT_EQ(CompletePrefixLength(""), 0u);
  EXPECT_EQ(CompletePrefixLength("ab\xE2\x82"), 2u);
  EXPECT_EQ(CompletePrefixLength("ab\xF0\x9F\x98"), 2u);
  EXPECT_EQ(CompletePrefixLength("ab\xE0\x80"), 4u);  // can't become a character any more
  EXPECT_EQ(CompletePrefixLength("\x80\x80\x80\x80"), 4u);
  EXPECT_EQ(CompletePrefixLength("\xE2\x82\xAC"), 3u);
}

TEST(Utf8, ReplacingInPartsEqualsReplacingAtOnce) {
  std::mt19937 random(11);
  // Bytes that often form beginnings of characters.
  constexpr std::string_view kBytes = "a\x80\x9F\xA0\xBF\xC2\xE0\xE2\xED\xF0\xF4\xFF";
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes, streamed, pending;
    for (int i = 0; i < 8; ++i) bytes += kBytes[random() % kBytes.size()];
    for (const char c : bytes) {
      pending += c;
      const size_t certain = CompletePrefixLength(pending);
      ASSERT_LE(pending.size() - certain, 3u);
      streamed += Lossy(pending.substr(0, certain));
      pending.erase(0, certain);
    }
    ASSERT_EQ(streamed + Lossy(pending), Lossy(bytes)) << "round " << round;
  }
}

}  // namespace
}  // namespace hearth
