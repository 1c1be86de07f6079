#include "common/checkpoint/config.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/config_parts.h"
#include "common/checkpoint/strict_json.h"

namespace hearth {
namespace {

constexpr int kMaxDepth = 16;
constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr int kMaxLayers = 1000;
constexpr const char* kArchitecture = "Qwen3NextForCausalLM";
constexpr const char* kModelType = "qwen3_next";

struct IntField {
  const char* name;
  int ModelConfig::*member;
  int min, max;
  int fallback;  // where absent; kRequired: absent is an error
};
constexpr int kRequired = -1;

// Limits: far above every published model, low enough that no product of two overflows an int and
// none of three an int64.
constexpr IntField kIntFields[] = {
    {"hidden_size", &ModelConfig::hidden_size, 1, 65536, kRequired},
    {"num_hidden_layers", &ModelConfig::n_layers, 1, kMaxLayers, kRequired},
    {"num_attention_heads", &ModelConfig::n_heads, 1, 1024, kRequired},
    {"num_key_value_heads", &ModelConfig::n_kv_heads, 1, 1024, kRequired},
    {"head_dim", &ModelConfig::head_dim, 2, 4096, kRequired},
    {"linear_num_key_heads", &ModelConfig::linear_key_heads, 1, 1024, kRequired},
    {"linear_num_value_heads", &ModelConfig::linear_value_heads, 1, 1024, kRequired},
    {"linear_key_head_dim", &ModelConfig::linear_key_head_dim, 1, 4096, kRequired},
    {"linear_value_head_dim", &ModelConfig::linear_value_head_dim, 1, 4096, kRequired},
    {"linear_conv_kernel_dim", &ModelConfig::conv_width, 2, 64, 4},
    {"num_experts", &ModelConfig::n_experts, 1, 4096, kRequired},
    {"num_experts_per_tok", &ModelConfig::experts_per_token, 1, 256, kRequired},
    {"moe_intermediate_size", &ModelConfig::expert_intermediate_size, 1, 65536, kRequired},
    {"shared_expert_intermediate_size", &ModelConfig::shared_expert_intermediate_size, 1, 65536,
     kRequired},
    {"intermediate_size", &ModelConfig::intermediate_size, 0, 1 << 20, 0},
    {"vocab_size", &ModelConfig::vocab_size, 1, 1 << 24, kRequired},
    {"max_position_embeddings", &ModelConfig::max_position_embeddings, 1, 1 << 30, kRequired},
};

absl::Status Unsupported(const JsonFields& fields, std::string_view what) {
  return absl::UnimplementedError(absl::StrCat(fields.where(), ": ", ToAbsl(what)));
}

absl::Status CheckArchitecture(const JsonFields& fields, ModelConfig& model) {
  HEARTH_ASSIGN_OR_RETURN(const auto type, fields.String("model_type"));
  HEARTH_ASSIGN_OR_RETURN(const json::array* names, fields.Array("architectures", 16));
  if (!type && names == nullptr) return fields.Missing("model_type");
  if (type && *type != kModelType) {
    return Unsupported(fields, absl::StrCat("model_type is \"", type->substr(0, 80),
                                            "\", supported is \"", kModelType, "\""));
  }
  for (const json::value& name : names != nullptr ? *names : json::array()) {
    if (!name.is_string() || name.get_string() != kArchitecture) {
      return Unsupported(fields, absl::StrCat("architecture ", SerializeJson(name).substr(0, 80),
                                              ", supported is \"", kArchitecture, "\""));
    }
  }
  model.model_type = kModelType;
  return absl::OkStatus();
}

// What would change the result and is not computed here.
absl::Status RefuseVariants(const JsonFields& fields) {
  HEARTH_ASSIGN_OR_RETURN(const auto bias, fields.Bool("attention_bias"));
  if (bias.value_or(false)) {
    return Unsupported(fields, "attention_bias is true, supported is false");
  }
  HEARTH_ASSIGN_OR_RETURN(const auto act, fields.String("hidden_act"));
  if (act && *act != "silu") {
    return Unsupported(
        fields, absl::StrCat("hidden_act is \"", act->substr(0, 80), "\", supported is \"silu\""));
  }
  HEARTH_ASSIGN_OR_RETURN(const json::object* quantization, fields.Object("quantization_config"));
  if (quantization == nullptr) return absl::OkStatus();
  const JsonFields inner(*quantization, absl::StrCat(fields.where(), ": quantization_config"));
  HEARTH_ASSIGN_OR_RETURN(const auto method, inner.String("quant_method"));
  if (method && *method != "bitsandbytes") {
    return Unsupported(inner,
                       absl::StrCat("quant_method is \"", method->substr(0, 80),
                                    "\", supported is \"bitsandbytes\" in 4 bits, and none"));
  }
  HEARTH_ASSIGN_OR_RETURN(const auto eight_bits, inner.Bool("load_in_8bit"));
  if (eight_bits.value_or(false)) {
    return Unsupported(inner, "load_in_8bit is true, supported are 4 bits");
  }
  return absl::OkStatus();
}

absl::Status ReadSizes(const JsonFields& fields, ModelConfig& model) {
  for (const IntField& field : kIntFields) {
    HEARTH_ASSIGN_OR_RETURN(const auto value, fields.Int(field.name, field.min, field.max));
    if (!value && field.fallback == kRequired) return fields.Missing(field.name);
    model.*field.member = static_cast<int>(value.value_or(field.fallback));
  }
  HEARTH_ASSIGN_OR_RETURN(const auto eps, fields.Number("rms_norm_eps", 0, 1));
  HEARTH_ASSIGN_OR_RETURN(const auto norm_topk, fields.Bool("norm_topk_prob"));
  HEARTH_ASSIGN_OR_RETURN(const auto tied, fields.Bool("tie_word_embeddings"));
  model.rms_norm_eps = eps.value_or(1e-6);
  model.norm_topk_prob = norm_topk.value_or(true);
  model.tie_word_embeddings = tied.value_or(false);
  return absl::OkStatus();
}

absl::Status CheckSizes(const JsonFields& fields, const ModelConfig& model) {
  const auto error = [&](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": ", parts...));
  };
  if (model.n_heads % model.n_kv_heads != 0) {
    return error("num_attention_heads ", model.n_heads,
                 " must be a multiple of num_key_value_heads ", model.n_kv_heads);
  }
  if (model.linear_value_heads % model.linear_key_heads != 0) {
    return error("linear_num_value_heads ", model.linear_value_heads,
                 " must be a multiple of linear_num_key_heads ", model.linear_key_heads);
  }
  if (model.experts_per_token > model.n_experts) {
    return error("num_experts_per_tok ", model.experts_per_token, " is above num_experts ",
                 model.n_experts);
  }
  // The widest projections must stay far inside an int.
  constexpr int64_t kMaxWidth = 1 << 20;
  const int64_t attention = int64_t{2} * model.n_heads * model.head_dim;
  const int64_t key_width = int64_t{2} * model.linear_key_heads * model.linear_key_head_dim;
  const int64_t value_width = int64_t{2} * model.linear_value_heads * model.linear_value_head_dim;
  if (attention > kMaxWidth) {
    return error("2 * num_attention_heads * head_dim is ", attention, ", the limit is ", kMaxWidth);
  }
  if (key_width + value_width > kMaxWidth) {
    return error("the delta net's heads are ", key_width + value_width,
                 " wide together, the limit is ", kMaxWidth);
  }
  return absl::OkStatus();
}

absl::Status ReadLayerTypes(const JsonFields& fields, ModelConfig& model) {
  HEARTH_ASSIGN_OR_RETURN(const auto interval,
                          fields.Int("full_attention_interval", 1, kMaxLayers));
  HEARTH_ASSIGN_OR_RETURN(const json::array* types, fields.Array("layer_types", kMaxLayers));
  model.layers.resize(static_cast<size_t>(model.n_layers));
  if (types != nullptr && static_cast<int>(types->size()) != model.n_layers) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": layer_types has ",
                                                   types->size(), " entries for ", model.n_layers,
                                                   " layers (num_hidden_layers)"));
  }
  for (int i = 0; i < model.n_layers; ++i) {
    bool is_full = (i + 1) % interval.value_or(4) == 0;
    if (types != nullptr) {
      const json::value& type = (*types)[static_cast<size_t>(i)];
      is_full = type == "full_attention";
      if (!is_full && type != "linear_attention") {
        return fields.Error(absl::StrCat("layer_types[", i, "]"), type,
                            "\"full_attention\" or \"linear_attention\"");
      }
    }
    model.layers[i].mixer = is_full ? MixerKind::kFullAttention : MixerKind::kDeltaNet;
  }
  return absl::OkStatus();
}

absl::Status ReadPlainLayers(const JsonFields& fields, ModelConfig& model) {
  HEARTH_ASSIGN_OR_RETURN(const auto step, fields.Int("decoder_sparse_step", 1, kMaxLayers));
  for (int i = 0; i < model.n_layers; ++i) {
    model.layers[i].has_experts = (i + 1) % step.value_or(1) == 0;
  }
  HEARTH_ASSIGN_OR_RETURN(const json::array* plain, fields.Array("mlp_only_layers", kMaxLayers));
  for (const json::value& entry : plain != nullptr ? *plain : json::array()) {
    if (!entry.is_int64() || entry.get_int64() < 0 || entry.get_int64() >= model.n_layers) {
      return fields.Error("mlp_only_layers", entry,
                          absl::StrCat("layers from 0 to ", model.n_layers - 1));
    }
    model.layers[entry.get_int64()].has_experts = false;
  }
  const bool has_plain = std::any_of(model.layers.begin(), model.layers.end(),
                                     [](const LayerConfig& layer) { return !layer.has_experts; });
  if (has_plain && model.intermediate_size == 0) return fields.Missing("intermediate_size");
  return absl::OkStatus();
}

absl::StatusOr<json::object> ParseFile(std::string_view text, const std::string& label) {
  auto object = ParseStrictObject(text, kMaxDepth);
  if (!object.ok()) return Annotate(object.status(), label);
  return object;
}

absl::StatusOr<ModelConfig> ParseLabelled(std::string_view config_json,
                                          const std::string& config_label,
                                          std::string_view generation_json,
                                          const std::string& generation_label) {
  HEARTH_ASSIGN_OR_RETURN(const json::object object, ParseFile(config_json, config_label));
  const JsonFields fields(object, config_label);
  ModelConfig model;
  HEARTH_RETURN_IF_ERROR(CheckArchitecture(fields, model));
  HEARTH_RETURN_IF_ERROR(RefuseVariants(fields));
  HEARTH_RETURN_IF_ERROR(ReadSizes(fields, model));
  HEARTH_RETURN_IF_ERROR(CheckSizes(fields, model));
  HEARTH_RETURN_IF_ERROR(ReadLayerTypes(fields, model));
  HEARTH_RETURN_IF_ERROR(ReadPlainLayers(fields, model));
  HEARTH_ASSIGN_OR_RETURN(model.rope, ReadRope(fields, model));
  HEARTH_RETURN_IF_ERROR(ReadGeneration(fields, model));
  if (generation_json.empty()) return model;
  HEARTH_ASSIGN_OR_RETURN(const json::object generation,
                          ParseFile(generation_json, generation_label));
  HEARTH_RETURN_IF_ERROR(ReadGeneration(JsonFields(generation, generation_label), model));
  return model;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const std::filesystem::path& folder) {
  const std::filesystem::path config_path = folder / "config.json";
  const std::filesystem::path generation_path = folder / "generation_config.json";
  HEARTH_ASSIGN_OR_RETURN(const std::string config_json, ReadFile(config_path, kMaxConfigBytes));
  std::string generation_json;
  auto generation = ReadFile(generation_path, kMaxConfigBytes);
  if (generation.ok()) {
    // An empty file is no JSON: one space keeps it from counting as absent.
    generation_json = generation->empty() ? " " : *std::move(generation);
  } else if (!absl::IsNotFound(generation.status())) {
    return generation.status();
  }
  return ParseLabelled(config_json, config_path.string(), generation_json,
                       generation_path.string());
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::string_view generation_json) {
  return ParseLabelled(config_json, "config.json", generation_json, "generation_config.json");
}

}  // namespace hearth
