#include "common/text/normalizer.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <string>

#include "common/text/utf8.h"

namespace hearth {
namespace {

TEST(Normalizer, ComposesOrdersAndLeavesExclusionsApart) {
  EXPECT_EQ(NormalizeNfc(""), "");
  EXPECT_EQ(NormalizeNfc("plain"), "plain");
  EXPECT_EQ(NormalizeNfc("e\u0301"), "\u00E9");
  EXPECT_EQ(NormalizeNfc("q\u0307\u0323"), "q\u0323\u0307");  // lower class first
  EXPECT_EQ(NormalizeNfc("\u1112\u1161\u11AB"), "\uD55C");    // jamo to a syllable
  EXPECT_EQ(NormalizeNfc("\u0958"), "\u0915\u093C");          // excluded from composition
  EXPECT_EQ(NormalizeNfc("\u212B"), "\u00C5");                // singleton
  EXPECT_EQ(NormalizeNfc("\uFB01"), "\uFB01");                // compatibility forms stay
  EXPECT_EQ(NormalizeNfc("\u03CB"), "\u03CB");
}

// utf8proc's own whole-text function is the second witness, on texts short enough for it.
TEST(Normalizer, EqualsUtf8procOnRandomTexts) {
  std::mt19937 random(13);
  constexpr char32_t kPlaces[] = {0x61,  0xC0,   0x300,   0x316,   0x323,  0x345,
                                  0x3B1, 0x1100, 0x1161,  0x11A8,  0xAC00, 0x915,
                                  0x93C, 0x1F80, 0x1D15E, 0x2F800, 0xFB1D};
  int n_changed = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (int i = 0; i < 10; ++i)
      AppendUtf8(kPlaces[random() % std::size(kPlaces)] + static_cast<char32_t>(random() % 20),
                 text);
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> want(
        utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str())), &std::free);
    const std::string got = NormalizeNfc(text);
    ASSERT_EQ(got, reinterpret_cast<const char*>(want.get())) << "round " << round;
    ASSERT_EQ(NormalizeNfc(got), got);
    n_changed += got != text;
  }
  EXPECT_GT(n_changed, 10'000);
}

}  // namespace
}  // namespace hearth
