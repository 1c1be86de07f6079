#include "common/checkpoint/safetensors.h"

#include <sys/resource.h>

#include <cstring>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/testing/safetensors_writer.h"
#include "common/testing/status_matchers.h"

namespace hearth::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<SafetensorsFile> Parse(const std::string& bytes) {
  return SafetensorsFile::Parse(std::as_bytes(std::span(bytes)), "x.safetensors");
}

TEST(Safetensors, WhatWasWrittenIsRead) {
  const std::string bytes = SafetensorsBytes(
      std::vector<RawTensor>{{"b", Dtype::kI32, {2}, std::string("\1\0\0\0\xff\xff\xff\xff", 8)},
                             {"a", Dtype::kF16, {1, 2}, std::string("\0\x3c\0\xc0", 4)},
                             {"empty", Dtype::kF32, {0, 7}, ""},
                             {"scalar", Dtype::kU8, {}, "\x05"}},
      {{"nll", "1.5"}, {"dtype", "float32"}});
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile file, Parse(bytes));
  EXPECT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.metadata().at("nll"), "1.5");
  EXPECT_THAT(file.Find("a")->shape, ElementsAre(1, 2));
  ASSERT_OK_AND_ASSIGN(const auto floats, ToFloats(*file.Find("a")));
  EXPECT_THAT(floats, ElementsAre(1.f, -2.f));
  ASSERT_OK_AND_ASSIGN(const auto integers, ToIntegers(*file.Find("b")));
  EXPECT_THAT(integers, ElementsAre(1, -1));
  EXPECT_EQ(file.Find("c"), nullptr);
  EXPECT_FALSE(ToFloats(*file.Find("b")).ok());
  EXPECT_FALSE(ToIntegers(*file.Find("a")).ok());
}

TEST(Safetensors, ViewsOutliveAMoveOfTheFile) {
  const std::string bytes = SafetensorsBytes(std::vector<RawTensor>{{"a", Dtype::kU8, {3}, "xyz"}});
  ASSERT_OK_AND_ASSIGN(SafetensorsFile file, Parse(bytes));
  const SafetensorsFile moved = std::move(file);
  ASSERT_NE(moved.Find("a"), nullptr);
  EXPECT_THAT(moved.Find("a")->shape, ElementsAre(3));
}

struct BadHeader {
  std::string header;
  std::string data;
  std::string message;
};

// One entry a kind of damage; each error names the file, and the tensor where there is one.
TEST(Safetensors, EveryBrokenHeaderIsRefusedByName) {
  const std::string a = R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]})";
  const std::string deep(4000, '[');
  const BadHeader cases[] = {
      {"", "", "incomplete"},
      {"[]", "", "array"},
      {"{", "", "incomplete"},
      {"{" + a + "}x", "ab", "text after"},
      {"{" + a + "," + a + "}", "ab", "tensor a: given twice"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "ab",
       "tensor a: dtype given twice"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", "", "\"k\" given twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", "", "__metadata__: given twice"},
      {R"({"__metadata__":{"k":1}})", "", "__metadata__"},
      {R"({"a":{"dtype":"Q4","shape":[2],"data_offsets":[0,2]}})", "ab",
       "tensor a: unknown dtype \"Q4\""},
      {R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,2]}})", "ab", "tensor a"},
      {R"({"a":{"shape":[2],"data_offsets":[0,2]}})", "ab", "tensor a: needs dtype"},
      {R"({"a":{"dtype":"U8","shape":[2]}})", "ab", "tensor a: needs dtype"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}})", "ab",
       "tensor a: unknown field \"x\""},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}})", "ab",
       "tensor a: shape [3] of U8 takes 3 bytes"},
      {R"({"a":{"dtype":"U8","shape":[-2],"data_offsets":[0,2]}})", "ab",
       "tensor a: negative number -2"},
      {R"({"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}})", "ab", "tensor a"},
      {R"({"a":{"dtype":"U8","shape":[[2]],"data_offsets":[0,2]}})", "ab", "deep"},
      {R"({"a":{"dtype":"U8","shape":["2"],"data_offsets":[0,2]}})", "ab", "tensor a"},
      {R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,2]}})", "ab",
       "more than 8 dimensions"},
      {R"({"a":{"dtype":"U8","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", "",
       "tensor a: shape [4611686018427387904, 4] overflows"},
      {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,0]}})", "",
       "overflows"},
      {R"({"a":{"dtype":"U8","shape":[99999999999999999999999],"data_offsets":[0,0]}})", "",
       "tensor a"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,3]}})", "ab",
       "data_offsets needs two"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}})", "ab",
       "tensor a: data_offsets [2, 0]"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", "ab",
       "tensor a: data_offsets [1, 3]"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[18446744073709551615,1]}})", "ab",
       "tensor a"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", "abc",
       "tensor a: begins at 1, the tensor before ends at 0: hole"},
      {"{" + a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", "abc",
       "tensor b: begins at 1, the tensor before ends at 2: overlap"},
      {"{" + a + "}", "abc", "tensors cover 2 of 3 bytes"},
      {R"({"a":1})", "", "tensor a"},
      {R"({"a":null})", "", "tensor a"},
      {R"({"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", "", "without a name"},
      {"{\"a\xff\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", "", "header byte"},
      {R"({"a":)" + deep, "", "x.safetensors"},
      {"{\"" + std::string(600, 'n') + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", "",
       "longer than 512"},
  };
  for (const BadHeader& bad : cases) {
    const auto result = Parse(SafetensorsBytes(bad.header, bad.data));
    ASSERT_FALSE(result.ok()) << bad.header.substr(0, 200);
    EXPECT_THAT(std::string(result.status().message()),
                AllOf(HasSubstr("x.safetensors"), HasSubstr(bad.message)));
  }
}

TEST(Safetensors, HeaderLengthIsComparedBeforeAnythingIsMadeOfIt) {
  for (const uint64_t claim :
       {uint64_t{100'000'000}, uint64_t{100'000'001}, ~uint64_t{0}, uint64_t{3}}) {
    std::string bytes(10, '{');
    std::memcpy(bytes.data(), &claim, 8);
    EXPECT_FALSE(Parse(bytes).ok()) << claim;
  }
  EXPECT_FALSE(Parse("").ok());
  EXPECT_FALSE(Parse("1234567").ok());
}

std::string ManyTensors(int n) {
  std::string header = "{";
  for (int i = 0; i < n; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", "\"model.layers.0.tensor.", i,
                    R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
  }
  return SafetensorsBytes(header + "}", "");
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kIsSanitized = true;  // slow, and needs memory itself
#else
constexpr bool kIsSanitized = false;
#endif

TEST(Safetensors, AMillionTensorsTakeMemoryInProportion) {
  constexpr int kTensors = kIsSanitized ? 20'000 : 1'000'000;
  const std::string bytes = ManyTensors(kTensors);
  rusage before{}, after{};
  ::getrusage(RUSAGE_SELF, &before);
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile file, Parse(bytes));
  ::getrusage(RUSAGE_SELF, &after);
  EXPECT_EQ(file.tensors().size(), size_t{kTensors});
  const uint64_t grown = static_cast<uint64_t>(after.ru_maxrss - before.ru_maxrss) << 10;
  if (!kIsSanitized) {
    EXPECT_LT(grown, 4 * bytes.size());
  }
}

TEST(Safetensors, FlippedHeaderBitsNeverCrash) {
  std::vector<RawTensor> tensors;
  for (int i = 0; i < 6; ++i) {
    AddTensor(absl::StrCat("layer.", i, ".weight"), {4, 16}, std::vector<float>(64, 0.5f),
              i % 2 == 0 ? Storage::kNf4 : Storage::kBF16, {}, tensors);
  }
  const std::string good = SafetensorsBytes(tensors);
  uint64_t header_size;
  std::memcpy(&header_size, good.data(), 8);
  std::mt19937_64 random(3);
  int n_refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string bad = good;
    const uint64_t bit = random() % ((8 + header_size) * 8);
    bad[bit / 8] = static_cast<char>(static_cast<uint8_t>(bad[bit / 8]) ^ (1u << (bit % 8)));
    const auto result = Parse(bad);
    if (!result.ok()) {
      ++n_refused;
      EXPECT_THAT(std::string(result.status().message()), HasSubstr("x.safetensors"));
      continue;
    }
    for (const TensorView& tensor : result->tensors()) {  // every byte must be readable
      uint64_t sum = 0;
      for (const std::byte byte : tensor.bytes) sum += static_cast<uint64_t>(byte);
      EXPECT_GE(sum, 0u);
    }
  }
  EXPECT_GT(n_refused, 1000);  // flips in names and metadata go unseen at this layer
}

}  // namespace
}  // namespace hearth::testing
