#include "common/checkpoint/config.h"

#include <cmath>
#include <functional>
#include <string>

#include "common/checkpoint/testing/checkpoint_writer.h"
#include "common/testing/status_matchers.h"

namespace hearth::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<ModelConfig> ParseWith(const std::function<void(json::object&)>& change,
                                      const CheckpointOptions& options = {},
                                      std::string_view generation = "") {
  json::object config = ConfigJson(options);
  change(config);
  return ParseModelConfig(SerializeJson(config), generation);
}

TEST(ModelConfig, BothStylesOfRotarySettingsMeanTheSame) {
  for (const bool newer : {false, true}) {
    ASSERT_OK_AND_ASSIGN(const ModelConfig model,
                         ParseWith([](json::object&) {}, {.yarn = true, .newer_config = newer}));
    EXPECT_TRUE(model.rope.yarn);
    EXPECT_EQ(model.rope.theta, 1e7);
    EXPECT_EQ(model.rope.rotary_dims, 8);
    EXPECT_EQ(model.rope.factor, 4);
    EXPECT_EQ(model.rope.original_max_position_embeddings, 1024);
    EXPECT_EQ(model.rope.beta_fast, 32);
    EXPECT_EQ(model.rope.beta_slow, 1);
    EXPECT_DOUBLE_EQ(model.rope.attention_factor, 0.1 * std::log(4.0) + 1);
  }
}

TEST(ModelConfig, OldSpellingOfYarnIsRead) {
  ASSERT_OK_AND_ASSIGN(
      const ModelConfig model, ParseWith([](json::object& config) {
        config["rope_scaling"] = {{"type", "yarn"}, {"factor", 2}, {"attention_factor", 1.25}};
      }));
  EXPECT_TRUE(model.rope.yarn);
  EXPECT_EQ(model.rope.original_max_position_embeddings, 4096);
  EXPECT_EQ(model.rope.attention_factor, 1.25);
}

TEST(ModelConfig, IntervalAndListsDecideTheLayers) {
  ASSERT_OK_AND_ASSIGN(
      const ModelConfig interval,
      ParseWith([](json::object&) {},
                {.n_layers = 5, .full_attention_interval = 2, .decoder_sparse_step = 2}));
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(interval.layers[i].mixer == MixerKind::kFullAttention, i % 2 == 1) << i;
    EXPECT_EQ(interval.layers[i].has_experts, i % 2 == 1) << i;
  }
  ASSERT_OK_AND_ASSIGN(
      const ModelConfig listed,
      ParseWith([](json::object&) {}, {.n_layers = 2,
                                       .layer_types = {"full_attention", "linear_attention"},
                                       .mlp_only_layers = {0}}));
  EXPECT_EQ(listed.layers[0].mixer, MixerKind::kFullAttention);
  EXPECT_EQ(listed.layers[1].mixer, MixerKind::kDeltaNet);
  EXPECT_FALSE(listed.layers[0].has_experts);
  EXPECT_TRUE(listed.layers[1].has_experts);
}

TEST(ModelConfig, GenerationConfigReplacesWhatConfigSays) {
  const auto keep = [](json::object&) {};
  ASSERT_OK_AND_ASSIGN(const ModelConfig alone, ParseWith(keep));
  EXPECT_THAT(alone.eos_token_ids, ElementsAre(1));
  ASSERT_OK_AND_ASSIGN(
      const ModelConfig model,
      ParseWith(keep, {}, R"({"eos_token_id": [7, 9], "do_sample": true, "temperature": 0.7,
                             "top_p": 0.8, "top_k": 20, "bos_token_id": null})"));
  EXPECT_THAT(model.eos_token_ids, ElementsAre(7, 9));
  EXPECT_EQ(model.bos_token_id, 0);
  EXPECT_EQ(model.defaults.do_sample, true);
  EXPECT_EQ(model.defaults.temperature, 0.7);
  EXPECT_EQ(model.defaults.top_k, 20);
  EXPECT_EQ(model.defaults.min_p, std::nullopt);
}

struct BadField {
  std::string path;
  json::value value;
  absl::StatusCode code;
  std::string message;  // must be part of it, beside the file's name
};

TEST(ModelConfig, EveryBadFieldIsRefusedWithItsNameValueAndRange) {
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  constexpr auto kNew = absl::StatusCode::kUnimplemented;
  const BadField cases[] = {
      {"hidden_size", 0, kBad, "hidden_size is 0, allowed: a whole number from 1 to 65536"},
      {"hidden_size", 65537, kBad, "hidden_size is 65537"},
      {"hidden_size", nullptr, kBad, "hidden_size is missing"},
      {"hidden_size", "64", kBad, "hidden_size is \"64\""},
      {"hidden_size", 64.5, kBad, "hidden_size is 6.45E1"},
      {"hidden_size", uint64_t{1} << 63, kBad, "hidden_size is 9223372036854775808"},
      {"num_hidden_layers", 1001, kBad, "from 1 to 1000"},
      {"num_hidden_layers", -1, kBad, "num_hidden_layers is -1"},
      {"num_key_value_heads", 3, kBad, "must be a multiple of num_key_value_heads 3"},
      {"linear_num_value_heads", 3, kBad, "must be a multiple of linear_num_key_heads 2"},
      {"num_experts_per_tok", 9, kBad, "num_experts_per_tok 9 is above num_experts 8"},
      {"linear_conv_kernel_dim", 1, kBad, "from 2 to 64"},
      {"vocab_size", 1 << 30, kBad, "vocab_size"},
      {"rms_norm_eps", -1, kBad, "rms_norm_eps"},
      {"tie_word_embeddings", 1, kBad, "true or false"},
      {"partial_rotary_factor", 2, kBad, "partial_rotary_factor"},
      {"partial_rotary_factor", 0.03, kBad, "rotates 0 values"},
      {"partial_rotary_factor", 0.1, kBad, "rotates 3 values"},
      {"rope_theta", 0, kBad, "rope_theta"},
      {"rope_scaling", {{"rope_type", "longrope"}}, kNew, "rope_type is \"longrope\""},
      {"rope_scaling", {{"rope_type", "yarn"}}, kBad, "factor is missing"},
      {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 0}}, kBad, "factor is 0"},
      {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2}, {"mscale", 1}}, kNew, "mscale"},
      {"rope_scaling",
       {{"rope_type", "yarn"}, {"factor", 2}, {"beta_fast", 1}, {"beta_slow", 2}},
       kBad,
       "beta_fast"},
      {"layer_types", {"full_attention"}, kBad, "layer_types has 1 entries for 4 layers"},
      {"layer_types", {"full_attention", "x", "x", "x"}, kBad, "layer_types[1] is \"x\""},
      {"mlp_only_layers", {4}, kBad, "layers from 0 to 3"},
      {"mlp_only_layers", {-1}, kBad, "layers from 0 to 3"},
      {"full_attention_interval", 0, kBad, "full_attention_interval is 0"},
      {"decoder_sparse_step", 0, kBad, "decoder_sparse_step is 0"},
      {"eos_token_id", 96, kBad, "token ids below vocab_size 96"},
      {"eos_token_id", {1, -1}, kBad, "eos_token_id is -1"},
      {"attention_bias", true, kNew, "attention_bias is true"},
      {"hidden_act", "gelu", kNew, "hidden_act is \"gelu\""},
      {"model_type", "llama", kNew, "model_type is \"llama\", supported is \"qwen3_next\""},
      {"architectures", {"LlamaForCausalLM"}, kNew, "LlamaForCausalLM"},
      {"quantization_config", {{"quant_method", "gptq"}}, kNew, "quant_method is \"gptq\""},
      {"quantization_config", {{"load_in_8bit", true}}, kNew, "load_in_8bit"},
  };
  for (const BadField& bad : cases) {
    const auto result = ParseWith([&](json::object& config) { config[bad.path] = bad.value; });
    EXPECT_THAT(result, IsStatus(bad.code, AllOf(HasSubstr("config.json"), HasSubstr(bad.message))))
        << bad.path;
  }
}

TEST(ModelConfig, ProductsAreLimitedToo) {
  EXPECT_THAT(ParseWith([](json::object& config) {
                config["head_dim"] = 4096;
                config["num_attention_heads"] = 1024;
              }),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("the limit is 1048576")));
  EXPECT_THAT(ParseWith([](json::object& config) {
                config["linear_value_head_dim"] = 4096;
                config["linear_num_value_heads"] = 1024;
              }),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("delta net")));
}

TEST(ModelConfig, BrokenTextsAreRefusedWithTheFilesName) {
  const std::string good = SerializeJson(ConfigJson({}));
  const std::string duplicate = R"({"hidden_size": 1, )" + good.substr(1);
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{"), good.substr(0, good.size() / 2),
        duplicate, R"({"a":)" + std::string(100, '[') + std::string(100, ']') + "}"}) {
    EXPECT_THAT(ParseModelConfig(text, ""),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("config.json")));
  }
  EXPECT_THAT(ParseModelConfig(duplicate, ""), IsStatus(absl::StatusCode::kInvalidArgument,
                                                        HasSubstr("\"hidden_size\" given twice")));
  EXPECT_THAT(ParseModelConfig(good, R"({"top_p": 2})"),
              IsStatus(absl::StatusCode::kInvalidArgument,
                       HasSubstr("generation_config.json: top_p is 2")));
}

}  // namespace
}  // namespace hearth::testing
