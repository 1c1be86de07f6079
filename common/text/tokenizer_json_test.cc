#include "common/text/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "common/text/tokenizer.h"

namespace hearth {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

json::value Seed(const std::string& name) {
  const std::string folder = hearth::testing::SourceDir() + "/tests/fuzz/corpus/tokenizer_json/";
  const auto text = ReadFile(folder + name, 1 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  return *ParseJson(*text);
}

struct Mutation {
  const char* what_the_message_names;
  absl::StatusCode code;
  std::function<void(json::object& root, json::object& model)> apply;
};

std::vector<Mutation> IdMutations() {
  return {
      {"model.vocab[\"abc\"]", kInvalid,
       [](auto&, auto& m) { m["vocab"].as_object()["abc"] = -1; }},
      {"model.vocab[\"abc\"]", kInvalid,
       [](auto&, auto& m) { m["vocab"].as_object()["abc"] = int64_t{1} << 31; }},
      {"model.vocab[\"abc\"]", kInvalid,
       [](auto&, auto& m) { m["vocab"].as_object()["abc"] = UINT64_MAX; }},
      {"model.vocab[\"abc\"]", kInvalid,
       [](auto&, auto& m) { m["vocab"].as_object()["abc"] = 1.5; }},
      {"model.vocab[\"abc\"]", kInvalid,
       [](auto&, auto& m) { m["vocab"].as_object()["abc"] = 256; }},
      {"has no token for the byte 65", kInvalid,
       [](auto&, auto& m) { m["vocab"].as_object().erase("A"); }},
      {"model.vocab", kInvalid, [](auto&, auto& m) { m["vocab"] = nullptr; }},
      {"model.merges[1]", kInvalid,
       [](auto&, auto& m) {
         m["merges"].as_array()[1] = {"ab", "no"};
       }},
      {"which is not in model.vocab", kInvalid,
       [](auto&, auto& m) {
         m["merges"].as_array()[1] = {"c", "ab"};
       }},
      {"model.merges[0]", kInvalid, [](auto&, auto& m) { m["merges"].as_array()[0] = "a b c"; }},
      {"model.merges[0]", kInvalid, [](auto&, auto& m) { m["merges"].as_array()[0] = 7; }},
      {"model.merges", kInvalid, [](auto&, auto& m) { m.erase("merges"); }},
      {"added_tokens[1].id", kInvalid,
       [](auto& r, auto&) { r["added_tokens"].at(1).as_object()["id"] = -1; }},
      {"added_tokens[1].id", kInvalid,
       [](auto& r, auto&) { r["added_tokens"].at(1).as_object()["id"] = 1 << 30; }},
      {"added_tokens[1].id", kInvalid,
       [](auto& r, auto&) { r["added_tokens"].at(1).as_object()["id"] = 259; }},
      {"added_tokens[1].id", kInvalid,
       [](auto& r, auto&) { r["added_tokens"].at(1).as_object()["id"] = 65; }},
      {"added_tokens[1].id", kInvalid,
       [](auto& r, auto&) { r["added_tokens"].at(1).as_object()["content"] = "<|a|>"; }},
      {"added_tokens[0].content", kInvalid,
       [](auto& r, auto&) { r["added_tokens"].at(0).as_object()["content"] = ""; }},
      {"the limit is 256", kInvalid,
       [](auto& r, auto&) {
         r["added_tokens"].at(0).as_object()["content"] = std::string(257, 'x');
       }},
      {"added_tokens[0].lstrip", kInvalid,
       [](auto& r, auto&) { r["added_tokens"].at(0).as_object()["lstrip"] = 1; }},
      {"added_tokens[0]", kInvalid, [](auto& r, auto&) { r["added_tokens"].at(0) = "x"; }},
      {"added_tokens", kInvalid, [](auto& r, auto&) { r["added_tokens"] = "x"; }},
  };
}

json::object& Split(json::object& root) {
  return root["pre_tokenizer"].at("pretokenizers").at(0).as_object();
}

std::vector<Mutation> KindMutations() {
  return {
      {"normalizer.type \"NFKC\"", kUnimplemented,
       [](auto& r, auto&) { r["normalizer"].as_object()["type"] = "NFKC"; }},
      {"pre_tokenizer.type \"Metaspace\"", kUnimplemented,
       [](auto& r, auto&) { r["pre_tokenizer"].as_object()["type"] = "Metaspace"; }},
      {"pretokenizers[0].type \"Digits\"", kUnimplemented,
       [](auto& r, auto&) { Split(r)["type"] = "Digits"; }},
      {"behavior \"Removed\"", kUnimplemented,
       [](auto& r, auto&) { Split(r)["behavior"] = "Removed"; }},
      {"invert", kUnimplemented, [](auto& r, auto&) { Split(r)["invert"] = true; }},
      {"pattern", kUnimplemented,
       [](auto& r, auto&) {
         Split(r)["pattern"] = {{"String", " "}};
       }},
      {"split pattern", kUnimplemented,
       [](auto& r, auto&) {
         Split(r)["pattern"] = {{"Regex", "\\w"}};
       }},
      {"split pattern", kInvalid,
       [](auto& r, auto&) {
         Split(r)["pattern"] = {{"Regex", "("}};
       }},
      {"pre_tokenizer", kInvalid, [](auto& r, auto&) { r["pre_tokenizer"] = nullptr; }},
      {"decoder.type \"Metaspace\"", kUnimplemented,
       [](auto& r, auto&) { r["decoder"].as_object()["type"] = "Metaspace"; }},
      {"model.type \"Unigram\"", kUnimplemented, [](auto&, auto& m) { m["type"] = "Unigram"; }},
      {"model.dropout", kUnimplemented, [](auto&, auto& m) { m["dropout"] = 0.1; }},
      {"model.byte_fallback", kUnimplemented, [](auto&, auto& m) { m["byte_fallback"] = true; }},
      {"model.end_of_word_suffix", kUnimplemented,
       [](auto&, auto& m) { m["end_of_word_suffix"] = "</w>"; }},
      {"model", kInvalid, [](auto& r, auto&) { r.erase("model"); }},
  };
}

void ExpectRefused(const Mutation& mutation) {
  json::value root = Seed("qwen_shape.json");
  mutation.apply(root.as_object(), root.as_object()["model"].as_object());
  EXPECT_THAT(Tokenizer::Parse(SerializeJson(root)),
              IsStatus(mutation.code, HasSubstr(mutation.what_the_message_names)));
}

TEST(TokenizerJson, WrongIdsMergesAndAddedTokensAreNamed) {
  for (const Mutation& mutation : IdMutations()) ExpectRefused(mutation);
}

TEST(TokenizerJson, OtherKindsOfTokenizerAreNamed) {
  for (const Mutation& mutation : KindMutations()) ExpectRefused(mutation);
}

TEST(TokenizerJson, NoJsonAndNoFileAreErrors) {
  EXPECT_THAT(Tokenizer::Parse("{"), IsStatus(kInvalid, HasSubstr("tokenizer.json")));
  EXPECT_THAT(Tokenizer::Parse("[]"), IsStatus(kInvalid, HasSubstr("object")));
  EXPECT_THAT(Tokenizer::Parse(std::string(1000, '[')), IsStatus(kInvalid, HasSubstr("too deep")));
  EXPECT_THAT(Tokenizer::Load("/nonexistent/tokenizer.json"),
              IsStatus(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/tokenizer.json")));
}

TEST(TokenizerJson, MergesMayBeStringsOrPairs) {
  // Both files have the merges a+b, ab+c and space+a; the first as pairs, the second as strings.
  ASSERT_OK_AND_ASSIGN(const auto pairs, Tokenizer::Parse(SerializeJson(Seed("qwen_shape.json"))));
  ASSERT_OK_AND_ASSIGN(const auto strings,
                       Tokenizer::Parse(SerializeJson(Seed("gpt2_shape.json"))));
  EXPECT_EQ(*pairs->Encode(" abc"), (std::vector<int32_t>{' ', 257})) << "rank decides";
  EXPECT_EQ(*pairs->Encode("abc"), std::vector<int32_t>{257});
  EXPECT_EQ(*strings->Encode(" abc"), *pairs->Encode(" abc"));
}

TEST(TokenizerJson, PlainByteLevelUsesGpt2sPatternAndPrefixesASpace) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer,
                       Tokenizer::Parse(SerializeJson(Seed("gpt2_shape.json"))));
  EXPECT_EQ(*tokenizer->Decode(*tokenizer->Encode("b 12")), " b 12");
  EXPECT_EQ(*tokenizer->Decode(*tokenizer->Encode(" b")), " b");
  // "ee" is an added token where it is a word of its own.
  EXPECT_EQ(*tokenizer->Encode(" ee"), (std::vector<int32_t>{' ', 300}));
  EXPECT_EQ(*tokenizer->Encode(" bee"), (std::vector<int32_t>{' ', 'b', 'e', 'e'}));
}

TEST(TokenizerJson, IgnoreMergesTakesWholePiecesFromTheVocabulary) {
  json::value root = Seed("qwen_shape.json");
  json::object& model = root.as_object()["model"].as_object();
  model["vocab"].as_object()["bca"] = 261;  // no merge makes it
  const auto encode = [&](bool ignore_merges) {
    model["ignore_merges"] = ignore_merges;
    return *(*Tokenizer::Parse(SerializeJson(root)))->Encode("bca");
  };
  EXPECT_EQ(encode(false), (std::vector<int32_t>{'b', 'c', 'a'}));
  EXPECT_EQ(encode(true), std::vector<int32_t>{261});
}

TEST(TokenizerJson, AddedTokensAreTextWhenSpecialIsNotParsed) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer,
                       Tokenizer::Parse(SerializeJson(Seed("qwen_shape.json"))));
  EXPECT_EQ(tokenizer->Encode("x<|a|>")->back(), 259);
  EXPECT_EQ(tokenizer->Encode("x<|a|>", {.parse_special = false})->size(), 6u);
  EXPECT_EQ(*tokenizer->Decode(std::vector<int32_t>{259, 'x'}, true), "x");
  EXPECT_EQ(*tokenizer->Decode(std::vector<int32_t>{260, 'x'}, true), "Itx");  // not special
}

TEST(TokenizerJson, IdsInGapsDecodeToNothingAndIdsBeyondAreErrors) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer,
                       Tokenizer::Parse(SerializeJson(Seed("gpt2_shape.json"))));
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_EQ(*tokenizer->Decode(std::vector<int32_t>{'x', 280, 'y'}), "xy");
  EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{'x', 301}),
              IsStatus(kInvalid, HasSubstr("301")));
  EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{-1}), IsStatus(kInvalid, HasSubstr("-1")));
}

}  // namespace
}  // namespace hearth
