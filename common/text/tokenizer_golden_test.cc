// The tokenizer against what Hugging Face tokenizers gave for the same files and texts.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/testing/source_dir.h"
#include "common/text/tokenizer.h"

namespace hearth {
namespace {

const std::string kRoot = hearth::testing::SourceDir();

const json::object& Cases() {
  static const json::value cases = [] {
    auto text = ReadFile(kRoot + "/tests/golden/text/tokenizer_cases.json", 16 << 20);
    EXPECT_TRUE(text.ok()) << text.status();
    auto value = ParseJson(*text);
    EXPECT_TRUE(value.ok()) << value.status();
    return *std::move(value);
  }();
  return cases.as_object();
}

const Tokenizer& Qwen() {
  static const auto tokenizer =
      Tokenizer::Load(kRoot + "/tests/golden/qwen3-tokenizer/tokenizer.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return **tokenizer;
}

std::vector<int32_t> Ids(const json::value& row) {
  std::vector<int32_t> ids;
  for (const json::value& id : row.at("ids").as_array())
    ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

std::string Text(const json::value& row, const char* key) {
  return std::string(row.at(key).as_string());
}

std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                     bool skip_special) {
  StreamingDetokenizer stream(tokenizer, skip_special);
  std::string text;
  for (const int32_t id : ids) text += stream.Push(id);
  return text + stream.Flush();
}

TEST(TokenizerGolden, EncodesAndDecodesAsTheReference) {
  const json::array& rows = Cases().at("encode").as_array();
  ASSERT_EQ(rows.size(), 862u);
  for (const json::value& row : rows) {
    const std::string text = Text(row, "text");
    const auto ids = Qwen().Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, Ids(row)) << text;
    EXPECT_EQ(*Qwen().Decode(Ids(row)), Text(row, "decoded"));
    EXPECT_EQ(*Qwen().Decode(Ids(row), true), Text(row, "decoded_skip_special"));
  }
}

TEST(TokenizerGolden, DecodesRandomIdsAsTheReference) {
  const json::array& rows = Cases().at("decode").as_array();
  ASSERT_EQ(rows.size(), 200u);
  int n_replaced = 0;
  for (const json::value& row : rows) {
    const std::string want = Text(row, "decoded");
    EXPECT_EQ(*Qwen().Decode(Ids(row)), want);
    EXPECT_EQ(Streamed(Qwen(), Ids(row), false), want);
    n_replaced += want.find("\uFFFD") != std::string::npos;
  }
  EXPECT_GT(n_replaced, 0) << "no case has invalid UTF-8";
}

TEST(TokenizerGolden, StreamsTheReferencesTexts) {
  for (const json::value& row : Cases().at("encode").as_array()) {
    EXPECT_EQ(Streamed(Qwen(), Ids(row), false), Text(row, "decoded"));
    EXPECT_EQ(Streamed(Qwen(), Ids(row), true), Text(row, "decoded_skip_special"));
  }
}

TEST(TokenizerGolden, KnowsQwensSpecialTokens) {
  EXPECT_EQ(Qwen().vocab_size(), 151669);
  EXPECT_EQ(Qwen().TokenId("<|im_end|>"), 151645);
  EXPECT_EQ(Qwen().TokenId("</think>"), 151668);
  EXPECT_EQ(Qwen().TokenId(" the"), 279);
  EXPECT_EQ(Qwen().TokenId("<|no such token|>"), std::nullopt);
  EXPECT_TRUE(Qwen().IsSpecial(151645));
  EXPECT_FALSE(Qwen().IsSpecial(151668));
  EXPECT_FALSE(Qwen().IsSpecial(-1));
  EXPECT_EQ(Qwen().TokenBytes(279), " the");
  EXPECT_EQ(Qwen().TokenBytes(151669), "");
}

TEST(TokenizerGolden, DemoModelsTokenizerGivesBackItsTexts) {
  const auto demo = Tokenizer::Load(kRoot + "/models/demo/tokenizer.json");
  ASSERT_TRUE(demo.ok()) << demo.status();
  for (const json::value& row : Cases().at("encode").as_array()) {
    // What Qwen's tokenizer decodes is in normal form C; the demo's added tokens must stay text.
    const std::string text = Text(row, "decoded");
    const auto ids = (*demo)->Encode(text, {.parse_special = false});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*(*demo)->Decode(*ids), text);
    EXPECT_EQ(Streamed(**demo, *ids, true), text);
  }
}

}  // namespace
}  // namespace hearth
