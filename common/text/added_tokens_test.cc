#include "common/text/added_tokens.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace hearth {
namespace {

// Text stretches as they are, tokens as <id>.
std::vector<std::string> Split(const std::vector<AddedToken>& tokens, std::string_view text) {
  std::vector<std::string> out;
  for (const auto& stretch : AddedTokenMatcher(tokens).Split(text)) {
    const bool is_text = stretch.id == AddedTokenMatcher::kText;
    out.push_back(is_text ? std::string(stretch.text) : "<" + std::to_string(stretch.id) + ">");
  }
  return out;
}

using Strings = std::vector<std::string>;

TEST(AddedTokens, LongestAtTheLeftmostPlaceWins) {
  const std::vector<AddedToken> tokens = {
      {.id = 1, .content = "ab"}, {.id = 2, .content = "abcd"}, {.id = 3, .content = "bcde"}};
  EXPECT_EQ(Split(tokens, "xabcdey"), (Strings{"x", "<2>", "ey"}));
  EXPECT_EQ(Split(tokens, "abcab"), (Strings{"<1>", "c", "<1>"}));
  EXPECT_EQ(Split(tokens, "bcde"), Strings{"<3>"});
  EXPECT_EQ(Split(tokens, ""), Strings{});
  EXPECT_EQ(Split({}, "ab"), Strings{"ab"});
}

TEST(AddedTokens, StripFlagsTakeUnicodeWhiteSpace) {
  EXPECT_EQ(Split({{.id = 1, .content = "T", .lstrip = true}}, "a \u3000\nT b"),
            (Strings{"a", "<1>", " b"}));
  EXPECT_EQ(Split({{.id = 1, .content = "T", .rstrip = true}}, "a T\u00A0\t b"),
            (Strings{"a ", "<1>", "b"}));
  const std::vector<AddedToken> both = {{.id = 1, .content = "T", .lstrip = true, .rstrip = true}};
  EXPECT_EQ(Split(both, "T  T"), (Strings{"<1>", "<1>"}));
  EXPECT_EQ(Split(both, "  T  "), Strings{"<1>"});
}

TEST(AddedTokens, SingleWordsTouchNoWordCharacter) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "T", .single_word = true}};
  EXPECT_EQ(Split(tokens, "T"), Strings{"<1>"});
  EXPECT_EQ(Split(tokens, "(T)"), (Strings{"(", "<1>", ")"}));
  for (const char* text : {"aT", "Tb", "éT", "T\u0301", "T_", "9T", "T\u24B6", "T\u200D"}) {
    EXPECT_EQ(Split(tokens, text), Strings{text});
  }
}

TEST(AddedTokens, WhiteSpaceTokensThatStripStayLinear) {
  // Each of the spaces is a token that takes all that follow: measured once, not once a space.
  const std::string spaces(1 << 20, ' ');
  const std::vector<AddedToken> tokens = {{.id = 1, .content = " ", .rstrip = true}};
  EXPECT_EQ(AddedTokenMatcher(tokens).Split(spaces).size(), spaces.size());
}

}  // namespace
}  // namespace hearth
