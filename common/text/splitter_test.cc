#include "common/text/splitter.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/text/split_pattern.h"

namespace hearth {
namespace {

std::vector<std::string> Pieces(std::string_view pattern, std::string_view text) {
  const auto splitter = Splitter::Create(pattern);
  EXPECT_TRUE(splitter.ok()) << splitter.status();
  std::vector<std::string> pieces;
  const absl::Status status =
      (*splitter)->Split(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  EXPECT_TRUE(status.ok()) << status;
  return pieces;
}

using Strings = std::vector<std::string>;

TEST(Splitter, Gpt2PatternCutsWordsNumbersAndSpaces) {
  EXPECT_EQ(Pieces(Gpt2SplitPattern(), "It's  1234 über\n\n x?!"),
            (Strings{"It", "'s", " ", " 1234", " über", "\n\n", " x", "?!"}));
}

TEST(Splitter, TextBetweenMatchesIsAPieceToo) {
  EXPECT_EQ(Pieces("[0-9]+", "ab12€3"), (Strings{"ab", "12", "€", "3"}));
  EXPECT_EQ(Pieces("[0-9]+", ""), Strings{});
  EXPECT_EQ(Pieces("x", "ab"), Strings{"ab"});
}

TEST(Splitter, EmptyMatchesCutBetweenCharacters) {
  EXPECT_EQ(Pieces("(?=b)", "abab"), (Strings{"a", "ba", "b"}));
  EXPECT_EQ(Pieces("x*", "€x"), (Strings{"€", "x"}));
}

TEST(Splitter, WhiteSpaceIsUnicodesWithoutTheMongolianVowelSeparator) {
  EXPECT_EQ(Pieces(R"(\s+)", "a\u0085\u00A0\u3000b"), (Strings{"a", "\u0085\u00A0\u3000", "b"}));
  EXPECT_EQ(Pieces(R"(\s+)", "a\u180Eb"), Strings{"a\u180Eb"});
  EXPECT_EQ(Pieces(R"([^\s]+)", "a b"), (Strings{"a", " ", "b"}));
}

TEST(Splitter, CountedRepeatsAndCategoriesWork) {
  EXPECT_EQ(Pieces(R"(\p{N}{1,3}|\p{Lu}\p{Ll}*)", "12345AbC"), (Strings{"123", "45", "Ab", "C"}));
}

TEST(Splitter, ConstructsThatDifferBetweenEnginesAreNamed) {
  for (const char* pattern : {R"(\w+)", R"(\h)", R"(a\b)", "^a", "a$", "[a&&b]", "[a[b]]",
                              "(?<name>a)", "(?R)", "(*ACCEPT)", R"(\p{Greek})", R"(\pL)", R"(\Ca)",
                              "a{,3}", "[]a]", R"(\1)", R"(\x41)", "(?C9)a"}) {
    const auto splitter = Splitter::Create(pattern);
    ASSERT_EQ(splitter.status().code(), absl::StatusCode::kUnimplemented) << pattern;
    EXPECT_NE(splitter.status().message().find("at byte"), absl::string_view::npos)
        << splitter.status();
  }
}

TEST(Splitter, WrongSyntaxIsAnError) {
  for (const char* pattern : {"(a", "a)", "[a", "a\\", "*"}) {
    EXPECT_EQ(Splitter::Create(pattern).status().code(), absl::StatusCode::kInvalidArgument)
        << pattern;
  }
  EXPECT_FALSE(Splitter::Create(std::string(1000, '(') + std::string(1000, ')')).ok());
  EXPECT_EQ(Splitter::Create(std::string(20'000, 'a')).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace hearth
