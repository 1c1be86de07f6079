#include "services/gpu-worker/engine/forward.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace hearth::worker {

namespace {

int AttentionLayers(const ModelConfig& config) {
  return static_cast<int>(
      std::ranges::count(config.layers, MixerKind::kFullAttention, &LayerConfig::mixer));
}

}  // namespace

Activations MakeActivations(const ModelConfig& c, int max_rows, bool with_mtp, Backend& backend) {
  const auto rows = [&](int64_t columns) { return backend.Allocate(max_rows * columns); };
  const int64_t heads = int64_t{c.n_heads} * c.head_dim, kv = int64_t{c.n_kv_heads} * c.head_dim;
  const int64_t values = int64_t{c.linear_value_heads} * c.linear_value_head_dim;
  Activations a;
  a.x = rows(c.hidden_size);
  a.h = rows(c.hidden_size);
  a.delta = rows(c.hidden_size);
  a.query_gate = rows(2 * heads);
  a.q = rows(heads);
  a.k = rows(kv);
  a.v = rows(kv);
  a.qkvz = rows(c.conv_channels() + values);
  a.ba = rows(2 * c.linear_value_heads);
  a.mixer_out = rows(std::max(heads, values));
  a.router_logits = rows(c.n_experts);
  a.shared = rows(c.hidden_size);
  a.shared_gate = rows(1);
  if (with_mtp) a.joined = rows(int64_t{2} * c.hidden_size);
  return a;
}

Forward::Forward(const ModelConfig& config, const ModelWeights& weights, Backend* backend,
                 int max_rows)
    : config_(config),
      weights_(weights),
      ops_(*backend),
      mtp_attention_(AttentionLayers(config)),
      attention_shape_{config.n_heads, config.n_kv_heads, config.head_dim},
      delta_shape_{config.linear_key_heads, config.linear_value_heads, config.linear_key_head_dim,
                   config.linear_value_head_dim},
      a_(MakeActivations(config, max_rows, weights.mtp.has_value(), *backend)) {}

absl::Status Forward::Run(const Batch& batch, const std::function<bool()>& interrupted,
                          float* logits) {
  HEARTH_RETURN_IF_ERROR(ops_.Begin(batch));
  HEARTH_RETURN_IF_ERROR(Enqueue(batch, interrupted));
  HEARTH_RETURN_IF_ERROR(ops_.Finish(logits));
  return interrupted() ? absl::CancelledError("the step was interrupted") : absl::OkStatus();
}

absl::Status Forward::Enqueue(const Batch& batch, const std::function<bool()>& interrupted) {
  const int n = batch.n_rows(), width = config_.hidden_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  const float* delta = nullptr;  // what the last block adds to the residual stream
  int attention_layer = 0, delta_layer = 0;

  ops_.Embed(weights_.embedding.ref, a_.x);  // [T, D]
  Observe("embedding", n, width, a_.x);
  for (int i = 0; i < config_.n_layers; ++i) {
    const LayerConfig& layer = config_.layers[static_cast<size_t>(i)];
    const LayerWeights& w = weights_.layers[static_cast<size_t>(i)];

    ops_.AddRmsNorm(width, a_.x, delta, w.input_norm.data(), eps, a_.h);
    if (layer.mixer == MixerKind::kFullAttention) {
      Attention(w.attention, attention_layer++);  // h -> delta
    } else {
      DeltaNet(w.delta_net, delta_layer++);  // h -> delta
    }
    delta = a_.delta;

    ops_.AddRmsNorm(width, a_.x, delta, w.post_attention_norm.data(), eps, a_.h);
    if (layer.has_experts) {
      HEARTH_RETURN_IF_ERROR(Experts(w.experts, i, n));  // h -> delta
    } else {
      ops_.Mlp(w.mlp.ref(), a_.h, a_.delta);
    }
    if (interrupted()) return absl::CancelledError("the step was interrupted");
    ObserveHidden(i, n);
  }
  ops_.AddRmsNorm(width, a_.x, delta, weights_.norm.data(), eps, a_.h);
  ops_.Head(weights_.head.ref, a_.h);  // [n, V]
  if (weights_.mtp.has_value()) StoreForDrafts();
  return absl::OkStatus();
}

void Forward::Attention(const AttentionWeights& w, int attention_layer) {
  const AttentionShape& s = attention_shape_;
  const Backend::Product products[] = {{&w.q_proj.ref, a_.query_gate},  // [T, H, query d | gate d]
                                       {&w.k_proj.ref, a_.k},           // [T, G, d]
                                       {&w.v_proj.ref, a_.v}};          // [T, G, d]
  ops_.Linears(products, a_.h);
  ops_.RotateAndStore(s, attention_layer,
                      {w.q_norm.data(), w.k_norm.data(), static_cast<float>(config_.rms_norm_eps)},
                      a_.query_gate, a_.k, a_.v, a_.q);
  ops_.Attention(s, attention_layer, a_.q, a_.query_gate, a_.mixer_out);
  const Backend::Product out[] = {{&w.o_proj.ref, a_.delta}};  // [T, D]
  ops_.Linears(out, a_.mixer_out);
}

void Forward::DeltaNet(const DeltaNetWeights& w, int delta_layer) {
  const Backend::Product products[] = {{&w.in_proj_qkvz.ref, a_.qkvz},  // [T, Hk, q | k | v | z]
                                       {&w.in_proj_ba.ref, a_.ba}};     // [T, Hk, b | a]
  ops_.Linears(products, a_.h);
  ops_.DeltaRule(delta_shape_, delta_layer,
                 {w.conv.data(), w.a_log.data(), w.dt_bias.data(), w.norm.data(),
                  static_cast<float>(config_.rms_norm_eps)},
                 a_.qkvz, a_.ba, a_.mixer_out);
  const Backend::Product out[] = {{&w.out_proj.ref, a_.delta}};  // [T, D]
  ops_.Linears(out, a_.mixer_out);
}

absl::Status Forward::Experts(const ExpertLayerWeights& w, int layer, int n_rows) {
  const Backend::Product products[] = {{&w.router.ref, a_.router_logits},             // [T, E]
                                       {&w.shared_expert_gate.ref, a_.shared_gate}};  // [T, 1]
  ops_.Linears(products, a_.h);
  HEARTH_RETURN_IF_ERROR(ops_.Experts({layer, config_.n_experts, config_.experts_per_token,
                                       config_.norm_topk_prob, a_.router_logits},
                                      {w.shared_expert.ref(), a_.shared_gate}, config_.hidden_size,
                                      a_.h, a_.delta));  // [T, D]
  ObserveRouter(layer, n_rows);
  return absl::OkStatus();
}

void Forward::Observe(std::string_view name, int rows, int columns, const float* values) const {
  if (!observer_) return;
  const std::vector<float> copy = ops_.Read(values, int64_t{rows} * columns);
  observer_(name, rows, columns, copy.data());
}

void Forward::ObserveHidden(int layer, int n_rows) {
  if (!observer_) return;
  // The layer's output is still in two parts: the next norm would add them.
  const int64_t n = int64_t{n_rows} * config_.hidden_size;
  std::vector<float> hidden = ops_.Read(a_.x, n);
  const std::vector<float> delta = ops_.Read(a_.delta, n);
  for (size_t i = 0; i < hidden.size(); ++i) hidden[i] += delta[i];
  observer_(absl::StrCat("layers.", layer, ".hidden"), n_rows, config_.hidden_size, hidden.data());
}

void Forward::ObserveRouter(int layer, int n_rows) {
  if (!observer_) return;
  const std::string prefix = absl::StrCat("layers.", layer, ".router.");
  const RouterChoice& choice = ops_.Choice();
  const std::vector<float> ids(choice.ids.begin(), choice.ids.end());
  Observe(prefix + "logits", n_rows, config_.n_experts, a_.router_logits);
  observer_(prefix + "topk_ids", n_rows, config_.experts_per_token, ids.data());
  observer_(prefix + "topk_weights", n_rows, config_.experts_per_token, choice.weights.data());
}

}  // namespace hearth::worker
