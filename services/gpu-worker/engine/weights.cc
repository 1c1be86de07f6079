#include "services/gpu-worker/engine/weights.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace hearth::worker {
namespace {

// Reads what belongs under one prefix, keeping the first error.
class Reader {
 public:
  explicit Reader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  OwnedLinear Linear(const std::string& module) {
    auto linear = checkpoint_.Linear(module);
    if (linear.ok()) return *std::move(linear);
    Keep(linear.status());
    return {};
  }
  std::vector<float> Vector(const std::string& name) {
    auto values = checkpoint_.Vector(name);
    if (values.ok()) return *std::move(values);
    Keep(values.status());
    return {};
  }
  MlpWeights Mlp(const std::string& prefix) {
    return {.gate = Linear(prefix + "gate_proj"),
            .up = Linear(prefix + "up_proj"),
            .down = Linear(prefix + "down_proj")};
  }
  const absl::Status& status() const { return status_; }

 private:
  void Keep(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

  const Checkpoint& checkpoint_;
  absl::Status status_;
};

AttentionWeights ReadAttention(Reader& reader, const std::string& prefix) {
  return {.q_proj = reader.Linear(prefix + "q_proj"),
          .k_proj = reader.Linear(prefix + "k_proj"),
          .v_proj = reader.Linear(prefix + "v_proj"),
          .o_proj = reader.Linear(prefix + "o_proj"),
          .q_norm = reader.Vector(prefix + "q_norm.weight"),
          .k_norm = reader.Vector(prefix + "k_norm.weight")};
}

std::vector<float> Transposed(const std::vector<float>& values, size_t rows, size_t columns) {
  if (values.size() != rows * columns) return {};  // an error was kept already
  std::vector<float> out(values.size());
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < columns; ++c) out[c * rows + r] = values[r * columns + c];
  }
  return out;
}

DeltaNetWeights ReadDeltaNet(Reader& reader, const ModelConfig& config, const std::string& prefix) {
  return {.in_proj_qkvz = reader.Linear(prefix + "in_proj_qkvz"),
          .in_proj_ba = reader.Linear(prefix + "in_proj_ba"),
          .out_proj = reader.Linear(prefix + "out_proj"),
          .conv = Transposed(reader.Vector(prefix + "conv1d.weight"),
                             static_cast<size_t>(config.conv_channels()),
                             static_cast<size_t>(config.conv_width)),
          .a_log = reader.Vector(prefix + "A_log"),
          .dt_bias = reader.Vector(prefix + "dt_bias"),
          .norm = reader.Vector(prefix + "norm.weight")};
}

LayerWeights ReadLayer(Reader& reader, const ModelConfig& config, const LayerConfig& layer,
                       const std::string& prefix) {
  LayerWeights weights;
  weights.input_norm = reader.Vector(prefix + "input_layernorm.weight");
  weights.post_attention_norm = reader.Vector(prefix + "post_attention_layernorm.weight");
  if (layer.mixer == MixerKind::kFullAttention) {
    weights.attention = ReadAttention(reader, prefix + "self_attn.");
  } else {
    weights.delta_net = ReadDeltaNet(reader, config, prefix + "linear_attn.");
  }
  if (layer.has_experts) {
    weights.experts = {.router = reader.Linear(prefix + "mlp.gate"),
                       .shared_expert_gate = reader.Linear(prefix + "mlp.shared_expert_gate"),
                       .shared_expert = reader.Mlp(prefix + "mlp.shared_expert.")};
  } else {
    weights.mlp = reader.Mlp(prefix + "mlp.");
  }
  return weights;
}

MtpWeights ReadMtp(Reader& reader, const ModelConfig& config) {
  return {
      .fc = reader.Linear("mtp.fc"),
      .embedding_norm = reader.Vector("mtp.pre_fc_norm_embedding.weight"),
      .hidden_norm = reader.Vector("mtp.pre_fc_norm_hidden.weight"),
      .layer = ReadLayer(reader, config, {.mixer = MixerKind::kFullAttention, .has_experts = true},
                         "mtp.layers.0."),
      .norm = reader.Vector("mtp.norm.weight")};
}

}  // namespace

absl::StatusOr<ModelWeights> ReadWeights(const Checkpoint& checkpoint, bool with_mtp) {
  const ModelConfig& config = checkpoint.config();
  Reader reader(checkpoint);
  ModelWeights weights;
  weights.embedding = reader.Linear("model.embed_tokens");
  for (int i = 0; i < config.n_layers; ++i) {
    weights.layers.push_back(ReadLayer(reader, config, config.layers[static_cast<size_t>(i)],
                                       absl::StrCat("model.layers.", i, ".")));
    HEARTH_RETURN_IF_ERROR(reader.status());
  }
  weights.norm = reader.Vector("model.norm.weight");
  weights.head = reader.Linear("lm_head");
  if (with_mtp && checkpoint.has_mtp()) weights.mtp = ReadMtp(reader, config);
  HEARTH_RETURN_IF_ERROR(reader.status());
  return weights;
}

}  // namespace hearth::worker
