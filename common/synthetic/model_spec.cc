#include "common/synthetic/model_spec.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/synthetic/byte_tokenizer.h"

namespace hearth {
namespace {

constexpr std::string_view kPrefix = "synthetic:";

// Fields as ModelConfig's; every width that a 4-bit linear reads is a multiple of its block of 64.
struct NamedShape {
  const char* name;
  int hidden, layers, vocabulary, heads, kv_heads, head_dim;
  int key_heads, value_heads, key_dim, value_dim;
  int experts, per_token, expert_width, shared_width, plain_width, positions;
};

constexpr NamedShape kShapes[] = {
    {"qwen3-next-80b", 2048, 48, 151936, 16, 2, 256, 16, 32, 128, 128, 512, 10, 512, 512, 5120,
     262144},
    {"demo", 256, 8, 6144, 4, 2, 64, 4, 8, 32, 32, 32, 4, 128, 128, 512, 32768},
    {"small", 512, 12, 16384, 8, 2, 64, 8, 16, 64, 64, 64, 6, 128, 128, 1024, 65536},
    {"tiny", 64, 4, 512, 4, 2, 32, 2, 4, 16, 16, 8, 2, 64, 64, 128, 4096},
};

const NamedShape* Find(std::string_view name) {
  const auto* found =
      std::ranges::find_if(kShapes, [name](const NamedShape& shape) { return shape.name == name; });
  return found == std::end(kShapes) ? nullptr : found;
}

absl::Status AddOption(std::string_view option, int64_t* n_layers, uint64_t* seed, bool* mtp) {
  const std::pair<std::string, std::string> parts =
      absl::StrSplit(ToAbsl(option), absl::MaxSplits('=', 1));
  const auto& [name, value] = parts;
  if (name == "layers" && absl::SimpleAtoi(value, n_layers) && *n_layers != 0) {
    return absl::OkStatus();
  }
  if (name == "seed" && absl::SimpleAtoi(value, seed)) return absl::OkStatus();
  if (name == "mtp" && (value == "0" || value == "1")) {
    *mtp = value == "1";
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", ToAbsl(option), "' in a synthetic model's name: allowed are layers=1 to ",
                   kMaxSyntheticLayers, ", seed=NUMBER and mtp=0 or 1"));
}

}  // namespace

std::vector<std::string> SyntheticShapes() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

absl::StatusOr<SyntheticSpec> MakeSyntheticSpec(std::string_view shape, int64_t n_layers,
                                                uint64_t seed, bool mtp) {
  const NamedShape* found = Find(shape);
  if (found == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("unknown shape '", ToAbsl(shape), "', one of ",
                                                   absl::StrJoin(SyntheticShapes(), ", ")));
  }
  if (n_layers == 0) n_layers = found->layers;
  if (n_layers < 1 || n_layers > kMaxSyntheticLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat(n_layers, " layers: allowed are 1 to ", kMaxSyntheticLayers));
  }
  return SyntheticSpec{found->name, static_cast<int>(n_layers), seed, mtp};
}

bool IsSyntheticName(std::string_view model) { return model.starts_with(kPrefix); }

absl::StatusOr<SyntheticSpec> ParseSyntheticName(std::string_view model) {
  if (!IsSyntheticName(model)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", ToAbsl(model), "' is not synthetic:SHAPE[,layers=N][,seed=S][,mtp=1]"));
  }
  const std::vector<std::string> parts = absl::StrSplit(ToAbsl(model.substr(kPrefix.size())), ',');
  int64_t n_layers = 0;
  uint64_t seed = 1;
  bool mtp = false;
  for (size_t i = 1; i < parts.size(); ++i) {
    HEARTH_RETURN_IF_ERROR(AddOption(parts[i], &n_layers, &seed, &mtp));
  }
  return MakeSyntheticSpec(parts[0], n_layers, seed, mtp);
}

std::string SyntheticName(const SyntheticSpec& spec) {
  return absl::StrCat(ToAbsl(kPrefix), spec.shape, ",layers=", spec.n_layers, ",seed=", spec.seed,
                      spec.mtp ? ",mtp=1" : "");
}

json::object SyntheticConfig(const SyntheticSpec& spec) {
  const NamedShape& s = *Find(spec.shape);
  const json::object quantization = {{"quant_method", "bitsandbytes"},
                                     {"load_in_4bit", true},
                                     {"load_in_8bit", false},
                                     {"bnb_4bit_quant_type", "nf4"},
                                     {"bnb_4bit_use_double_quant", true},
                                     {"bnb_4bit_compute_dtype", "bfloat16"},
                                     {"bnb_4bit_quant_storage", "uint8"},
                                     {"llm_int8_skip_modules", {"lm_head"}}};
  return {{"architectures", {"Qwen3NextForCausalLM"}},
          {"model_type", "qwen3_next"},
          {"torch_dtype", "bfloat16"},
          {"bos_token_id", kByteEndOfText},
          {"eos_token_id", kByteEndOfTurn},
          {"rope_theta", 1e7},
          {"partial_rotary_factor", 0.25},
          {"rope_scaling", nullptr},
          {"full_attention_interval", 4},
          {"quantization_config", quantization},
          {"vocab_size", s.vocabulary},
          {"hidden_size", s.hidden},
          {"intermediate_size", s.plain_width},
          {"num_hidden_layers", spec.n_layers},
          {"num_attention_heads", s.heads},
          {"num_key_value_heads", s.kv_heads},
          {"head_dim", s.head_dim},
          {"hidden_act", "silu"},
          {"max_position_embeddings", s.positions},
          {"rms_norm_eps", 1e-6},
          {"linear_conv_kernel_dim", 4},
          {"linear_key_head_dim", s.key_dim},
          {"linear_value_head_dim", s.value_dim},
          {"linear_num_key_heads", s.key_heads},
          {"linear_num_value_heads", s.value_heads},
          {"decoder_sparse_step", 1},
          {"moe_intermediate_size", s.expert_width},
          {"shared_expert_intermediate_size", s.shared_width},
          {"num_experts_per_tok", s.per_token},
          {"num_experts", s.experts},
          {"norm_topk_prob", true},
          {"mlp_only_layers", json::array()},
          {"tie_word_embeddings", false},
          {"attention_bias", false}};
}

json::object SyntheticGenerationConfig() {
  return {{"bos_token_id", kByteEndOfText},
          {"eos_token_id", {kByteEndOfTurn, kByteEndOfText}},
          {"do_sample", true},
          {"temperature", 0.7},
          {"top_p", 0.8},
          {"top_k", 20}};
}

}  // namespace hearth
