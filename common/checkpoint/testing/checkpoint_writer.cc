#include "common/checkpoint/testing/checkpoint_writer.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/model_tensors.h"

namespace hearth::testing {
namespace {

// Weights of a size that keeps activations near one: 1 / sqrt(inputs).
class RandomTensors {
 public:
  explicit RandomTensors(const CheckpointOptions& options)
      : options_(options), random_(options.seed) {}

  void AddAll(const ModelTensors& wanted, const ModelConfig& config) {
    for (const LinearSpec& spec : wanted.linears) {
      AddLinear(spec.module, ".weight", {spec.out, spec.in}, StorageOf(spec.module));
    }
    for (const VectorSpec& spec : wanted.vectors) AddVector(spec);
    const uint64_t hidden = config.hidden_size, width = config.expert_intermediate_size;
    const uint64_t n = config.n_experts;
    for (const std::string& prefix : wanted.experts) {
      if (options_.fused_experts) {
        const char* suffix = options_.fused_weight_suffix ? ".weight" : "";
        AddLinear(prefix + ".gate_up_proj", suffix, {n, 2 * width, hidden}, options_.experts);
        AddLinear(prefix + ".down_proj", suffix, {n, hidden, width}, options_.experts);
        continue;
      }
      for (uint64_t e = 0; e < n; ++e) {
        const std::string expert = absl::StrCat(prefix, ".", e);
        AddLinear(expert + ".gate_proj", ".weight", {width, hidden}, options_.experts);
        AddLinear(expert + ".up_proj", ".weight", {width, hidden}, options_.experts);
        AddLinear(expert + ".down_proj", ".weight", {hidden, width}, options_.experts);
      }
    }
  }

  std::vector<RawTensor> Take() && {
    std::sort(tensors_.begin(), tensors_.end(),
              [](const RawTensor& a, const RawTensor& b) { return a.name < b.name; });
    return std::move(tensors_);
  }

 private:
  Storage StorageOf(const std::string& module) const {
    const bool is_rest = module == "lm_head" || module == "model.embed_tokens" ||
                         absl::EndsWith(module, ".mlp.gate") ||
                         absl::EndsWith(module, ".shared_expert_gate");
    return is_rest ? options_.rest : options_.linears;
  }

  std::vector<float> Normal(uint64_t n, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<float> values(n);
    for (float& value : values) value = normal(random_);
    return values;
  }

  void AddLinear(const std::string& module, const char* suffix, const std::vector<uint64_t>& shape,
                 Storage storage) {
    if (options_.storage_of) storage = options_.storage_of(module).value_or(storage);
    uint64_t n = 1;
    for (const uint64_t dim : shape) n *= dim;
    const float deviation = 1 / std::sqrt(static_cast<float>(shape.back()));
    AddTensor(module + suffix, shape, Normal(n, 0, deviation), storage, options_.block4, tensors_);
  }

  void AddVector(const VectorSpec& spec) {
    uint64_t n = 1;
    for (const uint64_t dim : spec.shape) n *= dim;
    const bool is_plain_norm = absl::EndsWith(spec.name, "linear_attn.norm.weight");
    const bool is_conv = absl::EndsWith(spec.name, "conv1d.weight");
    AddTensor(spec.name, spec.shape, Normal(n, is_plain_norm ? 1.f : 0.f, is_conv ? 0.5f : 0.1f),
              Storage::kBF16, options_.block4, tensors_);
  }

  const CheckpointOptions& options_;
  std::mt19937_64 random_;
  std::vector<RawTensor> tensors_;
};

void AddRope(const CheckpointOptions& options, json::object& config) {
  json::object rope;
  if (options.yarn) {
    rope = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}};
  } else if (options.newer_config) {
    rope = {{"rope_type", "default"}};
  }
  json::object& base = options.newer_config ? rope : config;
  base["rope_theta"] = 1e7;
  base["partial_rotary_factor"] = options.partial_rotary_factor;
  if (options.newer_config) {
    config["rope_parameters"] = rope;
  } else {
    config["rope_scaling"] = options.yarn ? json::value(rope) : json::value(nullptr);
  }
}

}  // namespace

json::object ConfigJson(const CheckpointOptions& o) {
  json::object config = {
      {"architectures", {"Qwen3NextForCausalLM"}},
      {"model_type", "qwen3_next"},
      {"vocab_size", o.vocab_size},
      {"hidden_size", o.hidden_size},
      {"intermediate_size", o.intermediate_size},
      {"num_hidden_layers", o.n_layers},
      {"num_attention_heads", o.n_heads},
      {"num_key_value_heads", o.n_kv_heads},
      {"head_dim", o.head_dim},
      {"hidden_act", "silu"},
      {"max_position_embeddings", 4096},
      {"rms_norm_eps", 1e-6},
      {"linear_conv_kernel_dim", o.conv_width},
      {"linear_key_head_dim", o.linear_key_head_dim},
      {"linear_value_head_dim", o.linear_value_head_dim},
      {"linear_num_key_heads", o.linear_key_heads},
      {"linear_num_value_heads", o.linear_value_heads},
      {"decoder_sparse_step", o.decoder_sparse_step},
      {"moe_intermediate_size", o.expert_intermediate_size},
      {"shared_expert_intermediate_size", o.shared_expert_intermediate_size},
      {"num_experts_per_tok", o.experts_per_token},
      {"num_experts", o.n_experts},
      {"norm_topk_prob", o.norm_topk_prob},
      {"mlp_only_layers", json::array(o.mlp_only_layers.begin(), o.mlp_only_layers.end())},
      {"tie_word_embeddings", o.tie_word_embeddings},
      {"attention_bias", false},
      {"full_attention_interval", o.full_attention_interval},
      {"bos_token_id", 0},
      {"eos_token_id", 1},
  };
  config[o.newer_config ? "dtype" : "torch_dtype"] = "bfloat16";
  if (!o.layer_types.empty()) {
    json::array types;
    for (const std::string& type : o.layer_types) types.emplace_back(type);
    config["layer_types"] = types;
  }
  AddRope(o, config);
  return config;
}

std::vector<RawTensor> CheckpointTensors(const CheckpointOptions& options) {
  const auto config = ParseModelConfig(SerializeJson(ConfigJson(options)), "");
  HEARTH_CHECK(config.ok());
  RandomTensors random(options);
  random.AddAll(ListModelTensors(*config), *config);
  if (options.mtp) random.AddAll(ListMtpTensors(*config), *config);
  return std::move(random).Take();
}

absl::Status WriteCheckpoint(const CheckpointOptions& options,
                             const std::filesystem::path& folder) {
  return WriteCheckpoint(ConfigJson(options), CheckpointTensors(options), options.n_shards, folder);
}

absl::Status WriteCheckpoint(const json::object& config, const std::vector<RawTensor>& tensors,
                             int n_shards, const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  HEARTH_RETURN_IF_ERROR(WriteFileAtomically(folder / "config.json", SerializeJson(config)));
  if (n_shards <= 1) {
    return WriteFileAtomically(folder / "model.safetensors", SafetensorsBytes(tensors));
  }
  json::object weight_map;
  const size_t shards = static_cast<size_t>(n_shards);
  for (size_t i = 0; i < shards; ++i) {
    const std::string name = absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards);
    const size_t begin = tensors.size() * i / shards, end = tensors.size() * (i + 1) / shards;
    const auto part = std::span(tensors).subspan(begin, end - begin);
    for (const RawTensor& tensor : part) weight_map[tensor.name] = name;
    HEARTH_RETURN_IF_ERROR(WriteFileAtomically(folder / name, SafetensorsBytes(part)));
  }
  const json::object index = {{"metadata", json::object()}, {"weight_map", weight_map}};
  return WriteFileAtomically(folder / "model.safetensors.index.json", SerializeJson(index));
}

}  // namespace hearth::testing
