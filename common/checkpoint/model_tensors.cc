#include "common/checkpoint/model_tensors.h"

#include "absl/strings/str_cat.h"

namespace hearth {
namespace {

void AddMlp(const std::string& prefix, uint64_t hidden, uint64_t width, ModelTensors& tensors) {
  tensors.linears.push_back({prefix + ".gate_proj", width, hidden});
  tensors.linears.push_back({prefix + ".up_proj", width, hidden});
  tensors.linears.push_back({prefix + ".down_proj", hidden, width});
}

void AddAttention(const ModelConfig& c, const std::string& prefix, ModelTensors& tensors) {
  const uint64_t hidden = c.hidden_size, head = c.head_dim;
  tensors.linears.push_back({prefix + ".q_proj", 2 * head * c.n_heads, hidden});
  tensors.linears.push_back({prefix + ".k_proj", head * c.n_kv_heads, hidden});
  tensors.linears.push_back({prefix + ".v_proj", head * c.n_kv_heads, hidden});
  tensors.linears.push_back({prefix + ".o_proj", hidden, head * c.n_heads});
  tensors.vectors.push_back({prefix + ".q_norm.weight", {head}});
  tensors.vectors.push_back({prefix + ".k_norm.weight", {head}});
}

void AddDeltaNet(const ModelConfig& c, const std::string& prefix, ModelTensors& tensors) {
  const uint64_t hidden = c.hidden_size, value_heads = c.linear_value_heads;
  const uint64_t key_width = uint64_t(c.linear_key_heads) * c.linear_key_head_dim;
  const uint64_t value_width = value_heads * c.linear_value_head_dim;
  tensors.linears.push_back({prefix + ".in_proj_qkvz", 2 * key_width + 2 * value_width, hidden});
  tensors.linears.push_back({prefix + ".in_proj_ba", 2 * value_heads, hidden});
  tensors.linears.push_back({prefix + ".out_proj", hidden, value_width});
  tensors.vectors.push_back(
      {prefix + ".conv1d.weight", {uint64_t(c.conv_channels()), 1, uint64_t(c.conv_width)}});
  tensors.vectors.push_back({prefix + ".norm.weight", {uint64_t(c.linear_value_head_dim)}});
  tensors.vectors.push_back({prefix + ".A_log", {value_heads}});
  tensors.vectors.push_back({prefix + ".dt_bias", {value_heads}});
}

void AddLayer(const ModelConfig& c, const LayerConfig& layer, const std::string& prefix,
              ModelTensors& tensors) {
  const uint64_t hidden = c.hidden_size;
  tensors.vectors.push_back({prefix + ".input_layernorm.weight", {hidden}});
  tensors.vectors.push_back({prefix + ".post_attention_layernorm.weight", {hidden}});
  if (layer.mixer == MixerKind::kFullAttention) {
    AddAttention(c, prefix + ".self_attn", tensors);
  } else {
    AddDeltaNet(c, prefix + ".linear_attn", tensors);
  }
  if (!layer.has_experts) {
    AddMlp(prefix + ".mlp", hidden, c.intermediate_size, tensors);
    return;
  }
  tensors.linears.push_back({prefix + ".mlp.gate", uint64_t(c.n_experts), hidden});
  AddMlp(prefix + ".mlp.shared_expert", hidden, c.shared_expert_intermediate_size, tensors);
  tensors.linears.push_back({prefix + ".mlp.shared_expert_gate", 1, hidden});
  tensors.experts.push_back(prefix + ".mlp.experts");
}

}  // namespace

ModelTensors ListModelTensors(const ModelConfig& config) {
  const uint64_t hidden = config.hidden_size, vocabulary = config.vocab_size;
  ModelTensors tensors;
  tensors.linears.push_back({"model.embed_tokens", vocabulary, hidden});
  if (!config.tie_word_embeddings) tensors.linears.push_back({"lm_head", vocabulary, hidden});
  tensors.vectors.push_back({"model.norm.weight", {hidden}});
  for (int i = 0; i < config.n_layers; ++i) {
    AddLayer(config, config.layers[i], absl::StrCat("model.layers.", i), tensors);
  }
  return tensors;
}

ModelTensors ListMtpTensors(const ModelConfig& config) {
  const uint64_t hidden = config.hidden_size;
  ModelTensors tensors;
  tensors.linears.push_back({"mtp.fc", hidden, 2 * hidden});
  for (const char* name :
       {"mtp.pre_fc_norm_embedding.weight", "mtp.pre_fc_norm_hidden.weight", "mtp.norm.weight"}) {
    tensors.vectors.push_back({name, {hidden}});
  }
  AddLayer(config, {.mixer = MixerKind::kFullAttention, .has_experts = true}, "mtp.layers.0",
           tensors);
  return tensors;
}

}  // namespace hearth
