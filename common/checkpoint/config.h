// config.json and generation_config.json of a Qwen3-Next checkpoint, both published styles, checked
// field by field.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace hearth {

enum class MixerKind { kFullAttention, kDeltaNet };

struct LayerConfig {
  MixerKind mixer = MixerKind::kDeltaNet;
  bool has_experts = true;  // else a plain SwiGLU MLP of intermediate_size
};

struct RopeConfig {
  double theta = 10'000'000;
  int rotary_dims = 0;  // r: the first r values of each head are rotated; even
  bool yarn = false;
  double factor = 1;
  int original_max_position_embeddings = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double attention_factor =
      1;  // multiplies cos and sin; already 0.1 ln f + 1 where YaRN's is absent
};

// Letters as in docs/model.md: D, L, H, G, d, Hk, Hv, dk, dv, W, E, K, F, Fs, V.
struct ModelConfig {
  int hidden_size = 0;                      // D
  int n_layers = 0;                         // L
  int n_heads = 0;                          // H
  int n_kv_heads = 0;                       // G
  int head_dim = 0;                         // d
  int linear_key_heads = 0;                 // Hk
  int linear_value_heads = 0;               // Hv
  int linear_key_head_dim = 0;              // dk
  int linear_value_head_dim = 0;            // dv
  int conv_width = 4;                       // W
  int n_experts = 0;                        // E
  int experts_per_token = 0;                // K
  int expert_intermediate_size = 0;         // F
  int shared_expert_intermediate_size = 0;  // Fs
  int intermediate_size = 0;                // width of plain MLP layers
  int vocab_size = 0;                       // V
  int max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool norm_topk_prob = true;
  bool tie_word_embeddings = false;
  RopeConfig rope;
  std::vector<LayerConfig> layers;  // L of them
  std::string model_type;           // "qwen3_next"

  // From generation_config.json, else config.json.
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  struct Defaults {
    std::optional<bool> do_sample;
    std::optional<double> temperature, top_p, min_p, repetition_penalty;
    std::optional<int> top_k;
  } defaults;

  int conv_channels() const {
    return 2 * linear_key_heads * linear_key_head_dim + linear_value_heads * linear_value_head_dim;
  }
};

// Reads both files of `folder`. Errors name file, field, value and what is allowed; an architecture
// other than Qwen3-Next is Unimplemented.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::filesystem::path& folder);

// The same from texts, for tests and fuzzing; `generation_json` may be empty.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::string_view generation_json);

}  // namespace hearth
