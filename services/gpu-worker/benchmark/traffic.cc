#include "services/gpu-worker/benchmark/traffic.h"

#include <string>

#include "common/base/status_macros.h"
#include "common/checkpoint/model_tensors.h"
#include "common/experts/packing.h"
#include "common/tensor/linear.h"
#include "services/gpu-worker/engine/tiled_weights.h"

namespace hearth::worker {
namespace {

double BytesIn(const LinearRef& linear) {
  const LinearBytes bytes = BytesOf(linear);
  return static_cast<double>(bytes.data + bytes.absmax);
}

LinearRef KeptForm(const LinearRef& linear, bool is_exact, bool is_head) {
  return is_exact ? linear : FastForm(linear, is_head);
}

absl::StatusOr<double> ExpertBytes(const Checkpoint& checkpoint, const std::string& experts,
                                   bool is_exact) {
  ExpertRef shapes;
  HEARTH_ASSIGN_OR_RETURN(shapes.gate, checkpoint.LinearShape(experts + ".0.gate_proj"));
  HEARTH_ASSIGN_OR_RETURN(shapes.up, checkpoint.LinearShape(experts + ".0.up_proj"));
  HEARTH_ASSIGN_OR_RETURN(shapes.down, checkpoint.LinearShape(experts + ".0.down_proj"));
  HEARTH_ASSIGN_OR_RETURN(const uint64_t bytes,
                          PackedExpertBytes(shapes, is_exact ? kPlainExperts : kTiledExperts));
  return static_cast<double>(bytes);
}

// Sums of what is listed, embedding and head excepted.
absl::StatusOr<double> DenseBytes(const Checkpoint& checkpoint, const ModelTensors& tensors,
                                  bool is_exact) {
  double bytes = 0;
  for (const LinearSpec& spec : tensors.linears) {
    if (spec.module == "lm_head" || spec.module == "model.embed_tokens") continue;
    HEARTH_ASSIGN_OR_RETURN(const LinearRef shape, checkpoint.LinearShape(spec.module));
    bytes += BytesIn(KeptForm(shape, is_exact, false));
  }
  for (const VectorSpec& spec : tensors.vectors) {  // kept as float32
    double n = sizeof(float);
    for (const uint64_t dim : spec.shape) n *= static_cast<double>(dim);
    bytes += n;
  }
  return bytes;
}

// A step stores keys and values of the head's layer: fc and two projections.
absl::Status AddMtp(const Checkpoint& checkpoint, bool is_exact, Traffic* traffic) {
  const ModelConfig& c = checkpoint.config();
  HEARTH_ASSIGN_OR_RETURN(traffic->draft_bytes,
                          DenseBytes(checkpoint, ListMtpTensors(c), is_exact));
  for (const char* module :
       {"mtp.fc", "mtp.layers.0.self_attn.k_proj", "mtp.layers.0.self_attn.v_proj"}) {
    HEARTH_ASSIGN_OR_RETURN(const LinearRef shape, checkpoint.LinearShape(module));
    traffic->dense_bytes += BytesIn(KeptForm(shape, is_exact, false));
  }
  traffic->draft_kv_token_bytes = 2.0 * sizeof(float) * c.n_kv_heads * c.head_dim;
  traffic->kv_token_bytes += traffic->draft_kv_token_bytes;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Traffic> ComputeTraffic(const Checkpoint& checkpoint, bool is_exact, bool with_mtp) {
  const ModelConfig& c = checkpoint.config();
  const ModelTensors tensors = ListModelTensors(c);
  Traffic traffic;
  HEARTH_ASSIGN_OR_RETURN(traffic.dense_bytes, DenseBytes(checkpoint, tensors, is_exact));
  HEARTH_ASSIGN_OR_RETURN(const LinearRef head, checkpoint.LinearShape("lm_head"));
  HEARTH_ASSIGN_OR_RETURN(const LinearRef embedding, checkpoint.LinearShape("model.embed_tokens"));
  traffic.head_bytes = BytesIn(KeptForm(head, is_exact, true));
  traffic.embedding_row_bytes = BytesIn(embedding) / static_cast<double>(embedding.out);
  if (!tensors.experts.empty()) {
    HEARTH_ASSIGN_OR_RETURN(traffic.expert_bytes,
                            ExpertBytes(checkpoint, tensors.experts[0], is_exact));
  }
  const double recurrent =
      static_cast<double>(c.linear_value_heads) * c.linear_key_head_dim * c.linear_value_head_dim;
  const double history = static_cast<double>(c.conv_width - 1) * c.conv_channels();
  for (const LayerConfig& layer : c.layers) {
    if (layer.mixer == MixerKind::kDeltaNet) {
      traffic.state_bytes += 2 * sizeof(float) * (recurrent + history);
    } else {
      traffic.kv_token_bytes += 2.0 * sizeof(float) * c.n_kv_heads * c.head_dim;
    }
  }
  if (with_mtp) HEARTH_RETURN_IF_ERROR(AddMtp(checkpoint, is_exact, &traffic));
  return traffic;
}

double DraftBytes(const Traffic& traffic, const StepTraffic& step) {
  return traffic.draft_bytes + traffic.head_bytes +
         traffic.embedding_row_bytes * static_cast<double>(step.sequences) +
         traffic.expert_bytes * static_cast<double>(step.experts) +
         traffic.draft_kv_token_bytes * static_cast<double>(step.kv_positions + step.sequences);
}

double StepBytes(const Traffic& traffic, const StepTraffic& step) {
  return traffic.dense_bytes + (step.has_logits ? traffic.head_bytes : 0) +
         traffic.embedding_row_bytes * static_cast<double>(step.rows) +
         traffic.expert_bytes * static_cast<double>(step.experts) +
         traffic.state_bytes * static_cast<double>(step.sequences) +
         traffic.kv_token_bytes * static_cast<double>(step.kv_positions + step.rows);
}

absl::StatusOr<uint64_t> DenseMemory(const Checkpoint& checkpoint, bool is_exact, bool with_mtp) {
  HEARTH_ASSIGN_OR_RETURN(Traffic traffic, ComputeTraffic(checkpoint, is_exact));
  if (with_mtp) {
    HEARTH_ASSIGN_OR_RETURN(const Traffic both, ComputeTraffic(checkpoint, is_exact, true));
    traffic.dense_bytes += both.draft_bytes;
  }
  const ModelConfig& config = checkpoint.config();
  const double embedding = traffic.embedding_row_bytes * config.vocab_size;
  return static_cast<uint64_t>(traffic.dense_bytes + embedding +
                               (config.tie_word_embeddings ? 0 : traffic.head_bytes));
}

}  // namespace hearth::worker
