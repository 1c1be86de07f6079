// The checkpoints that lie in the repository: each opens, and is what its maker says it is.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/safetensors.h"
#include "common/testing/compare.h"
#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"

namespace hearth {
namespace {

const std::string kGolden = hearth::testing::SourceDir() + "/tests/golden/";

struct GoldenCase {
  std::string folder;  // under the repository
  std::string quantization;
  bool has_mtp;
};

class Golden : public ::testing::TestWithParam<GoldenCase> {};

TEST_P(Golden, OpensWithEveryTensorKnownAndReadable) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint,
                       Checkpoint::Open(hearth::testing::SourceDir() + "/" + GetParam().folder));
  EXPECT_EQ(checkpoint->quantization(), GetParam().quantization);
  EXPECT_EQ(checkpoint->has_mtp(), GetParam().has_mtp);
  EXPECT_THAT(checkpoint->unknown_tensors(), ::testing::IsEmpty());
  EXPECT_EQ(checkpoint->ExpertFingerprint().size(), 64u);
  const ModelConfig& config = checkpoint->config();
  for (int i = 0; i < config.n_layers; ++i) {
    if (!config.layers[i].has_experts) continue;
    for (int e = 0; e < config.n_experts; ++e) {
      const std::string expert =
          "model.layers." + std::to_string(i) + ".mlp.experts." + std::to_string(e);
      ASSERT_OK_AND_ASSIGN(const OwnedLinear down, checkpoint->Linear(expert + ".down_proj"));
      EXPECT_EQ(down.ref.out, config.hidden_size);
      EXPECT_EQ(down.ref.in, config.expert_intermediate_size);
      std::vector<float> row(static_cast<size_t>(down.ref.in));
      DequantizeRow(down.ref, down.ref.out - 1, row);
      for (const float value : row) ASSERT_TRUE(std::isfinite(value));
    }
  }
  EXPECT_TRUE(checkpoint->Has("lm_head"));
  EXPECT_OK(checkpoint->Vector("model.norm.weight"));
}

INSTANTIATE_TEST_SUITE_P(
    Repository, Golden,
    ::testing::Values(GoldenCase{"models/demo", "nf4", true},
                      GoldenCase{"tests/golden/tiny-a", "nf4", false},
                      GoldenCase{"tests/golden/tiny-a-bf16", "none", false},
                      GoldenCase{"tests/golden/tiny-b", "nf4", false},
                      GoldenCase{"tests/golden/made-equal-heads-f16", "none", false},
                      GoldenCase{"tests/golden/made-fused-fp4", "fp4", false},
                      GoldenCase{"tests/golden/made-top1-unnormalised", "none", false},
                      GoldenCase{"tests/golden/made-yarn-tied", "nf4", false}),
    [](const auto& test) {
      std::string name = test.param.folder.substr(test.param.folder.rfind('/') + 1);
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

// The embedding of the reference was looked up by the reference implementation itself.
TEST(GoldenValues, EmbeddingRowsAreThoseOfTheReference) {
  for (const char* name : {"tiny-a", "tiny-a-bf16", "tiny-b"}) {
    ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(kGolden + name));
    ASSERT_OK_AND_ASSIGN(const auto reference,
                         SafetensorsFile::Open(kGolden + name + "/reference.safetensors"));
    ASSERT_NE(reference.Find("input_ids"), nullptr);
    ASSERT_OK_AND_ASSIGN(const auto ids, ToIntegers(*reference.Find("input_ids")));
    ASSERT_OK_AND_ASSIGN(const auto want, ToFloats(*reference.Find("embedding")));
    ASSERT_OK_AND_ASSIGN(const OwnedLinear embedding, checkpoint->Linear("model.embed_tokens"));
    std::vector<float> row(static_cast<size_t>(embedding.ref.in));
    for (size_t t = 0; t < ids.size(); ++t) {
      DequantizeRow(embedding.ref, ids[t], row);
      ASSERT_TRUE(testing::AllClose(row, std::span(want).subspan(t * row.size(), row.size()), {}));
    }
  }
}

}  // namespace
}  // namespace hearth
