// Texts and patterns made to be slow: the work must grow with the text, not with its square.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "common/base/file.h"
#include "common/testing/source_dir.h"
#include "common/text/bpe.h"
#include "common/text/normalizer.h"
#include "common/text/splitter.h"
#include "common/text/tokenizer.h"
#include "common/text/tokenizer_json.h"

namespace hearth {
namespace {

using std::chrono::duration;
using std::chrono::steady_clock;

constexpr size_t kMib = 1 << 20;
// Optimised on an idle machine each takes a quarter of a second at most; anything quadratic takes
// minutes.
constexpr double kGenerousSeconds = 20;

const std::string kQwenFile =
    hearth::testing::SourceDir() + "/tests/golden/qwen3-tokenizer/tokenizer.json";

const Tokenizer& Qwen() {
  static const auto tokenizer = Tokenizer::Load(kQwenFile);
  return **tokenizer;
}

std::string Repeated(const std::string& unit, size_t n_bytes) {
  std::string text;
  text.reserve(n_bytes + unit.size());
  while (text.size() < n_bytes) text += unit;
  return text;
}

std::string Json(size_t n_bytes) {
  std::string text = "[";
  for (int i = 0; text.size() < n_bytes; ++i) {
    text += "{\"id\":" + std::to_string(i * 7919) +
            ",\"tags\":[\"a\",\"b\\n\"],\"x\":{\"y\":null,\"z\":-1.5e3}},";
  }
  return text + "0]";
}

// All marks of class 230 before all of class 220: the most that canonical ordering can have to
// move.
std::string MarksInWrongOrder(size_t n_bytes) {
  return "a" + Repeated("\u0301", n_bytes / 2) + Repeated("\u0323", n_bytes / 2);
}

struct Hostile {
  const char* name;
  std::string text;
};

std::vector<Hostile> HostileTexts(size_t n) {
  return {{"a", Repeated("a", n)},
          {"underscores", Repeated("_", n)},
          {"carets", Repeated("^", n)},
          {"spaces", Repeated(" ", n)},
          {"newlines", Repeated("\n", n)},
          {"spaces and a letter", Repeated(" ", n) + "x"},
          {"newlines and spaces", Repeated("\n", n / 2) + Repeated(" ", n / 2) + "x"},
          {"emoji", Repeated("👩‍👩‍👧‍👦🏳️‍🌈", n)},
          {"hangul jamo", Repeated("\u1112\u1161\u11AB", n)},
          {"leading jamo", Repeated("\u1100", n)},
          {"marks in wrong order", MarksInWrongOrder(n)},
          {"alternating marks", "a" + Repeated("\u0301\u0323", n)},
          {"marks that compose", Repeated("e\u0323\u0302\u0301", n)},
          {"longest decompositions", Repeated("\u1F82\uFB2C", n)},
          {"quotes", Repeated("'s'S'", n)},
          {"beginnings of tokens", Repeated("<|im_start<|im_", n)},
          {"added tokens", Repeated("<|im_start|>", n)},
          {"random letters",
           [n] {
             std::mt19937 random(7);
             std::string text(n, 'a');
             for (char& c : text) c = static_cast<char>('a' + random() % 26);
             return text;
           }()},
          {"compact JSON", Json(n)}};
}

double Seconds(const std::function<void()>& work) {
  const auto start = steady_clock::now();
  work();
  return duration<double>(steady_clock::now() - start).count();
}

TEST(TokenizerHostile, AMebibyteOfAnythingIsQuick) {
  for (const Hostile& hostile : HostileTexts(kMib)) {
    absl::StatusOr<std::vector<int32_t>> ids;
    const double seconds = Seconds([&] { ids = Qwen().Encode(hostile.text); });
    ASSERT_TRUE(ids.ok()) << hostile.name << ": " << ids.status();
    EXPECT_LT(seconds, kGenerousSeconds) << hostile.name;
    EXPECT_EQ(*Qwen().Decode(*ids), NormalizeNfc(hostile.text)) << hostile.name;
  }
}

TEST(TokenizerHostile, MergingTakesAFewStepsAByteHoweverLongThePiece) {
  auto text = ReadFile(kQwenFile, kMaxTokenizerJsonBytes);
  ASSERT_TRUE(text.ok());
  const auto tables = ParseTokenizerJson(*text);
  ASSERT_TRUE(tables.ok()) << tables.status();
  const Bpe bpe(tables->byte_ids, tables->merges);
  for (const size_t n : {kMib / 64, kMib / 8}) {
    for (const Hostile& hostile : HostileTexts(n)) {
      Bpe::Scratch scratch;
      std::vector<int32_t> ids;
      bpe.Encode(hostile.text, scratch, ids);  // the whole text as one piece
      // A byte is pushed once, and a merge removes a symbol and pushes at most two pairs; each is
      // popped once.
      EXPECT_LE(scratch.n_steps, static_cast<int64_t>(6 * hostile.text.size())) << hostile.name;
    }
  }
}

TEST(TokenizerHostile, TextBeyondTheLimitIsRefusedBeforeAnyWork) {
  EXPECT_EQ(Qwen().Encode("abcd", {.max_bytes = 4}).status(), absl::OkStatus());
  const auto refused = Qwen().Encode("abcde", {.max_bytes = 4});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.status().message(), "the text has 5 bytes, the limit is 4");
}

TEST(TokenizerHostile, InvalidUtf8NamesTheByte) {
  const auto refused = Qwen().Encode("ab\xE2\x82");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.status().message(), "the text is not UTF-8 at byte 2");
}

TEST(TokenizerHostile, SlowPatternsEndInAnError) {
  const std::string text = Repeated("a", kMib / 4);
  for (const char* pattern : {"(a+)+b",          // exponential
                              "(?:a|a)*b",       // exponential without nested repeats
                              "[ab]*a*b",        // quadratic in one match
                              "(?:(?=.*x)a)*b",  // a scan for each step
                              "a(?=.*x)|a",      // a scan for each match
                              "(?:a?){999}a{999}b"}) {
    const auto splitter = Splitter::Create(pattern);
    if (!splitter.ok()) continue;  // refusing the pattern is as good
    absl::Status status;
    const double seconds =
        Seconds([&] { status = (*splitter)->Split(text, [](std::string_view) {}); });
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << pattern;
    EXPECT_LT(seconds, kGenerousSeconds) << pattern;
  }
}

}  // namespace
}  // namespace hearth
