// Small synthetic checkpoints in the published format: random weights by seed, any shape, storage
// and style. For tests of checkpoint, store and engine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/base/json.h"
#include "common/checkpoint/testing/safetensors_writer.h"

namespace hearth::testing {

struct CheckpointOptions {
  uint64_t seed = 1;

  // Shapes, as ModelConfig.
  int hidden_size = 64, n_layers = 4, vocab_size = 96, intermediate_size = 96;
  int n_heads = 4, n_kv_heads = 2, head_dim = 32;
  int linear_key_heads = 2, linear_value_heads = 4, linear_key_head_dim = 16,
      linear_value_head_dim = 16, conv_width = 4;
  int n_experts = 8, experts_per_token = 2, expert_intermediate_size = 32,
      shared_expert_intermediate_size = 32;
  int full_attention_interval = 4, decoder_sparse_step = 1;
  std::vector<std::string> layer_types = {};  // written where not empty
  std::vector<int> mlp_only_layers = {};
  bool norm_topk_prob = true, tie_word_embeddings = false, mtp = false;
  double partial_rotary_factor = 0.25;
  bool yarn = false;          // factor 4 over 1024 positions
  bool newer_config = false;  // rope_parameters and dtype

  // Storage: `experts` and `linears` may be 4-bit; embedding, head, router and shared_expert_gate
  // are `rest`; vectors are bf16 always. `storage_of` decides first, where it is set and gives
  // something for a module ("lm_head").
  Storage experts = Storage::kNf4, linears = Storage::kNf4, rest = Storage::kBF16;
  std::function<std::optional<Storage>(std::string_view module)> storage_of = nullptr;
  Block4Options block4 = {};
  bool fused_experts = false;        // gate_up_proj [E, 2F, D], down_proj [E, D, F]
  bool fused_weight_suffix = false;  // their names end in ".weight"
  int n_shards = 1;                  // above 1: with an index
};

// config.json's object, to be changed before it is written.
json::object ConfigJson(const CheckpointOptions& options);
// Every tensor in order of names. `options` must give a valid configuration.
std::vector<RawTensor> CheckpointTensors(const CheckpointOptions& options);
// config.json and the weights (and index) into `folder`, which is created.
absl::Status WriteCheckpoint(const CheckpointOptions& options, const std::filesystem::path& folder);
// The same with tensors of one's own.
absl::Status WriteCheckpoint(const json::object& config, const std::vector<RawTensor>& tensors,
                             int n_shards, const std::filesystem::path& folder);

}  // namespace hearth::testing
