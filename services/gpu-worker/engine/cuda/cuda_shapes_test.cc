// What a model takes of a card, with and without multi-token prediction. Needs no device.
#include "services/gpu-worker/engine/cuda/cuda_shapes.h"

#include <filesystem>
#include <memory>

#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/engine/tiled_weights.h"

namespace hearth::worker {
namespace {

class CudaShapesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::filesystem::path root = hearth::testing::SourceDir();
    ASSERT_OK_AND_ASSIGN(checkpoint_, Checkpoint::Open(root / "models/demo"));
    ASSERT_OK_AND_ASSIGN(layout_, FindSlotLayout(*checkpoint_));
  }
  VramNeeds Needs(int max_drafts) {
    const EngineOptions options{.exact = false, .max_drafts = max_drafts, .max_sequences = 3};
    auto weights = ReadWeights(*checkpoint_, max_drafts > 0);
    EXPECT_OK(weights);
    const CudaShapes shapes = ShapesOf(config(), *weights, layout_, options);
    EXPECT_EQ(shapes.backend.max_drafts, max_drafts);
    return NeedsOf(config(), *weights, layout_, shapes, options);
  }
  const ModelConfig& config() const { return checkpoint_->config(); }

  static int64_t BytesOf(const VramNeeds& needs, std::string_view part) {
    for (const VramPart& fixed : needs.fixed) {
      if (fixed.name.starts_with(part)) return static_cast<int64_t>(fixed.bytes);
    }
    ADD_FAILURE() << "no part " << part;
    return 0;
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  SlotLayout layout_;
};

TEST_F(CudaShapesTest, TheHeadTakesALayerOfEverythingAndDraftsTakeTheirRows) {
  const VramNeeds without = Needs(0), with = Needs(1), most = Needs(3);
  const ModelConfig& c = config();
  const auto more = [](const VramNeeds& a, const VramNeeds& b, std::string_view part) {
    return BytesOf(b, part) - BytesOf(a, part);
  };
  // One more layer's experts, keys and values, and weights.
  EXPECT_EQ(with.all_experts - without.all_experts, c.n_experts);
  const auto attention_layers = DeviceStateShape::Of(c).attention_layers;
  EXPECT_EQ(more(without, with, "KV pages") * attention_layers, BytesOf(without, "KV pages"));
  auto plain = ReadWeights(*checkpoint_, false), weights = ReadWeights(*checkpoint_, true);
  ASSERT_OK(plain);
  ASSERT_OK(weights);
  const auto linears = static_cast<int64_t>(TiledBytes(*weights, DenseReader::kCuda) -
                                            TiledBytes(*plain, DenseReader::kCuda));
  const int64_t norms = 4 * (5 * int64_t{c.hidden_size} + 2 * c.head_dim);
  const auto shared_expert = static_cast<int64_t>(layout_.stride);
  EXPECT_EQ(more(without, with, "dense weights"), linears + norms + shared_expert);
  EXPECT_GT(more(without, with, "streaming"), 0);
  // fc's inputs of each row.
  EXPECT_GE(more(without, with, "work space"), 4 * 512 * 2 * c.hidden_size);

  // Of each sequence: hidden states, and two places for the rows that can be taken back.
  EXPECT_GT(more(without, with, "states"), 3 * 4 * 3 * c.hidden_size);
  const int64_t rows = 2 * (more(without, with, "states") - 3 * 4 * 2 * c.hidden_size);
  EXPECT_EQ(more(with, most, "states"), rows);
  // Far less than copies of the states would.
  EXPECT_LT(more(without, most, "states"), BytesOf(without, "states"));
  EXPECT_EQ(more(with, most, "dense weights"), 0);
  EXPECT_EQ(with.all_experts, most.all_experts);
}

TEST_F(CudaShapesTest, WithoutTheHeadNothingIsTakenForDrafts) {
  auto weights = ReadWeights(*checkpoint_, /*with_mtp=*/false);
  ASSERT_OK(weights);
  const EngineOptions options{.exact = false, .max_drafts = 3, .max_sequences = 3};
  const CudaShapes shapes = ShapesOf(config(), *weights, layout_, options);
  EXPECT_EQ(shapes.backend.max_drafts, 0);
  const VramNeeds needs = NeedsOf(config(), *weights, layout_, shapes, options);
  const VramNeeds without = Needs(0);
  for (const VramPart& part : without.fixed) {
    EXPECT_EQ(BytesOf(needs, part.name), static_cast<int64_t>(part.bytes)) << part.name;
  }
  EXPECT_EQ(needs.all_experts, without.all_experts);
}

TEST_F(CudaShapesTest, WhatASequenceKeepsDoesNotOverlap) {
  DeviceStateShape shape = DeviceStateShape::Of(config(), 3);
  EXPECT_EQ(shape.attention_layers, DeviceStateShape::Of(config()).attention_layers + 1);
  EXPECT_EQ(shape.history_floats, (config().conv_width - 1 + 3) * shape.channels);
  EXPECT_EQ(shape.kept_floats % 4, 0);
  EXPECT_GE(shape.kept_floats, 3 * (shape.channels + 2 * config().linear_value_heads));
  EXPECT_EQ(shape.sequence_floats(),
            shape.delta_layers * shape.layer_floats() + 5 * int64_t{config().hidden_size});
}

TEST_F(CudaShapesTest, AModelThatTheKernelsWereNotMadeForIsRefusedByItsField) {
  EXPECT_OK(CheckModel(config()));
  const auto refused = [&](int ModelConfig::*field, int value) {
    ModelConfig other = config();
    other.*field = value;
    return std::string(CheckModel(other).message());
  };
  EXPECT_EQ(
      refused(&ModelConfig::head_dim, 16),
      "the CUDA backend takes no model with head_dim 16 (config.json): it must be 32, 64, 128 "
      "or 256; choose --backend cpu");
  EXPECT_THAT(refused(&ModelConfig::n_experts, 1025), ::testing::HasSubstr("num_experts 1025"));
  EXPECT_THAT(refused(&ModelConfig::experts_per_token, 32),
              ::testing::HasSubstr("num_experts_per_tok 32"));
  EXPECT_THAT(refused(&ModelConfig::conv_width, 5),
              ::testing::HasSubstr("linear_conv_kernel_dim 5"));
  EXPECT_THAT(refused(&ModelConfig::linear_key_head_dim, 129),
              ::testing::HasSubstr("linear_key_head_dim 129"));
  EXPECT_THAT(refused(&ModelConfig::linear_value_head_dim, 62),
              ::testing::HasSubstr("linear_value_head_dim 62"));
}

}  // namespace
}  // namespace hearth::worker
