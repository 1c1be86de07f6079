#include "services/gpu-worker/engine/forward.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/rotary.h"

namespace hearth::worker {

Activations MakeActivations(const ModelConfig& c, int max_rows) {
  const auto size = [max_rows](int64_t columns) {
    return HugeVector<float>(static_cast<size_t>(max_rows * columns));
  };
  const int64_t heads = int64_t{c.n_heads} * c.head_dim, kv = int64_t{c.n_kv_heads} * c.head_dim;
  const int64_t values = int64_t{c.linear_value_heads} * c.linear_value_head_dim;
  Activations a;
  a.x = a.h = a.delta = a.shared = size(c.hidden_size);
  a.query_gate = size(2 * heads);
  a.q = a.gate = size(heads);
  a.k = a.v = size(kv);
  a.qkvz = size(c.conv_channels() + values);
  a.mixed = a.convolved = size(c.conv_channels());
  a.z = size(values);
  a.ba = size(2 * c.linear_value_heads);
  a.mixer_out = size(std::max(heads, values));
  a.router_logits = size(c.n_experts);
  a.shared_gate = size(1);
  return a;
}

Forward::Forward(const ModelConfig& config, const ModelWeights& weights, ExpertSource* experts,
                 Ops* ops, int max_rows, RoutingOverride* routing)
    : config_(config),
      weights_(weights),
      experts_(*experts),
      ops_(*ops),
      routing_(routing),
      attention_shape_{config.n_heads, config.n_kv_heads, config.head_dim},
      delta_shape_{config.linear_key_heads, config.linear_value_heads, config.linear_key_head_dim,
                   config.linear_value_head_dim},
      rotary_(MakeRotaryTable(config.rope)),
      a_(MakeActivations(config, max_rows)) {}

absl::Status Forward::Run(const Batch& batch, const std::function<bool()>& interrupted,
                          float* logits) {
  const int n = static_cast<int>(batch.ids.size()), width = config_.hidden_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  const float* delta = nullptr;  // what the last block adds to the residual stream
  int attention_layer = 0, delta_layer = 0;

  ops_.Embed(weights_.embedding.ref, batch.ids, a_.x.data());  // [T, D]
  Observe("embedding", n, width, a_.x.data());
  for (int i = 0; i < config_.n_layers; ++i) {
    const LayerConfig& layer = config_.layers[static_cast<size_t>(i)];
    const LayerWeights& w = weights_.layers[static_cast<size_t>(i)];

    ops_.AddRmsNorm(n, width, a_.x.data(), delta, w.input_norm.data(), eps, a_.h.data());
    if (layer.mixer == MixerKind::kFullAttention) {
      Attention(batch, w.attention, attention_layer++);  // h -> delta
    } else {
      DeltaNet(batch, w.delta_net, delta_layer++);  // h -> delta
    }
    delta = a_.delta.data();

    ops_.AddRmsNorm(n, width, a_.x.data(), delta, w.post_attention_norm.data(), eps, a_.h.data());
    if (layer.has_experts) {
      HEARTH_RETURN_IF_ERROR(Experts(batch, w.experts, i));  // h -> delta
    } else {
      ops_.Mlp(w.mlp.ref(), n, a_.h.data(), a_.delta.data());
    }
    if (interrupted()) return absl::CancelledError("the step was interrupted");
    ObserveHidden(i, n);
  }
  ops_.AddRmsNorm(n, width, a_.x.data(), delta, weights_.norm.data(), eps, a_.h.data());

  // Only the rows whose logits are wanted go through the head: gathered in front of `shared`.
  for (size_t r = 0; r < batch.logits_rows.size(); ++r) {
    std::copy_n(a_.h.data() + int64_t{batch.logits_rows[r]} * width, width,
                a_.shared.data() + static_cast<int64_t>(r) * width);
  }
  ops_.Linear(weights_.head.ref, static_cast<int>(batch.logits_rows.size()), a_.shared.data(),
              logits);  // [n, V]
  return interrupted() ? absl::CancelledError("the step was interrupted") : absl::OkStatus();
}

void Forward::Attention(const Batch& batch, const AttentionWeights& w, int attention_layer) {
  const int n = static_cast<int>(batch.ids.size());
  const AttentionShape& s = attention_shape_;
  const int64_t q_row = int64_t{s.n_heads} * s.head_dim,
                kv_row = int64_t{s.n_kv_heads} * s.head_dim;

  ops_.Linear(w.q_proj.ref, n, a_.h.data(), a_.query_gate.data());  // [T, H, query d | gate d]
  ops_.Linear(w.k_proj.ref, n, a_.h.data(), a_.k.data());           // [T, G, d]
  ops_.Linear(w.v_proj.ref, n, a_.h.data(), a_.v.data());           // [T, G, d]
  ops_.PrepareQueryKey(s, n, batch.positions.data(), rotary_, a_.query_gate.data(), w.q_norm.data(),
                       w.k_norm.data(), static_cast<float>(config_.rms_norm_eps), a_.q.data(),
                       a_.gate.data(), a_.k.data());
  for (const BatchItem& item : batch.items) {
    const KvPages pages = item.sequence->Pages(attention_layer);
    const int64_t row = item.rows.begin;
    ops_.StoreKv(s, item.rows.size(), item.first_position, a_.k.data() + row * kv_row,
                 a_.v.data() + row * kv_row, pages);
    ops_.Attention(s, item.rows.size(), item.first_position, a_.q.data() + row * q_row,
                   a_.gate.data() + row * q_row, pages, a_.mixer_out.data() + row * q_row);
  }
  ops_.Linear(w.o_proj.ref, n, a_.mixer_out.data(), a_.delta.data());  // [T, D]
}

void Forward::DeltaNet(const Batch& batch, const DeltaNetWeights& w, int delta_layer) {
  const int n = static_cast<int>(batch.ids.size());
  const DeltaShape& s = delta_shape_;
  const int64_t channels = s.channels(), values = int64_t{s.value_heads} * s.value_dim;
  const Ops::DeltaWeights weights{w.a_log.data(), w.dt_bias.data(), w.norm.data(),
                                  static_cast<float>(config_.rms_norm_eps)};

  ops_.Linear(w.in_proj_qkvz.ref, n, a_.h.data(), a_.qkvz.data());  // [T, Hk, q | k | v | z]
  ops_.Linear(w.in_proj_ba.ref, n, a_.h.data(), a_.ba.data());      // [T, Hk, b | a]
  ops_.SplitQkvz(s, n, a_.qkvz.data(), a_.mixed.data(), a_.z.data());
  for (const BatchItem& item : batch.items) {
    const int64_t row = item.rows.begin;
    ops_.Convolve(item.rows.size(), static_cast<int>(channels), config_.conv_width, w.conv.data(),
                  a_.mixed.data() + row * channels, item.sequence->conv_history(delta_layer).data(),
                  a_.convolved.data() + row * channels);
    ops_.DeltaRule(s, weights, item.rows.size(), a_.convolved.data() + row * channels,
                   a_.ba.data() + row * 2 * s.value_heads, a_.z.data() + row * values,
                   item.sequence->recurrent(delta_layer).data(),
                   a_.mixer_out.data() + row * values);
  }
  ops_.Linear(w.out_proj.ref, n, a_.mixer_out.data(), a_.delta.data());  // [T, D]
}

absl::Status Forward::Experts(const Batch& batch, const ExpertLayerWeights& w, int layer) {
  const int n = static_cast<int>(batch.ids.size()), top_k = config_.experts_per_token;

  ops_.Linear(w.router.ref, n, a_.h.data(), a_.router_logits.data());  // [T, E]
  ops_.Route(n, config_.n_experts, top_k, config_.norm_topk_prob, a_.router_logits.data(),
             &a_.choice);  // [T, K]
  if (routing_ != nullptr) ImposeRouting(batch, layer);
  ObserveRouter(layer, n);

  std::map<int32_t, ExpertWork> work;  // by expert
  for (int32_t place = 0; place < n * top_k; ++place) {
    ExpertWork& item = work[a_.choice.ids[static_cast<size_t>(place)]];
    item.rows.push_back(place / top_k);
    item.places.push_back(place);
  }
  std::vector<ExpertWork> list;
  for (auto& [expert, item] : work) {
    HEARTH_ASSIGN_OR_RETURN(item.expert, experts_.Get(layer, expert));
    list.push_back(std::move(item));
  }
  ops_.Experts(n, config_.hidden_size, top_k, a_.h.data(), list, a_.choice, a_.delta.data());
  ops_.Mlp(w.shared_expert.ref(), n, a_.h.data(), a_.shared.data());             // [T, D]
  ops_.Linear(w.shared_expert_gate.ref, n, a_.h.data(), a_.shared_gate.data());  // [T, 1]
  ops_.AddGated(n, config_.hidden_size, a_.shared.data(), a_.shared_gate.data(), a_.delta.data());
  return absl::OkStatus();
}

void Forward::ImposeRouting(const Batch& batch, int layer) {
  std::vector<RoutingOverride::Rows> items;
  for (const BatchItem& item : batch.items) {
    items.push_back({item.rows.begin, item.rows.end, item.first_position});
  }
  routing_->Impose(layer, items, config_.experts_per_token, a_.choice.ids);
}

void Forward::Observe(std::string_view name, int rows, int columns, const float* values) const {
  if (observer_) observer_(name, rows, columns, values);
}

void Forward::ObserveHidden(int layer, int n_rows) {
  if (!observer_) return;
  // The layer's output is still in two parts: the next norm would add them.
  std::vector<float> hidden(a_.x.begin(), a_.x.begin() + int64_t{n_rows} * config_.hidden_size);
  for (size_t i = 0; i < hidden.size(); ++i) hidden[i] += a_.delta[i];
  Observe(absl::StrCat("layers.", layer, ".hidden"), n_rows, config_.hidden_size, hidden.data());
}

void Forward::ObserveRouter(int layer, int n_rows) {
  if (!observer_) return;
  const std::string prefix = absl::StrCat("layers.", layer, ".router.");
  const std::vector<float> ids(a_.choice.ids.begin(), a_.choice.ids.end());
  Observe(prefix + "logits", n_rows, config_.n_experts, a_.router_logits.data());
  Observe(prefix + "topk_ids", n_rows, config_.experts_per_token, ids.data());
  Observe(prefix + "topk_weights", n_rows, config_.experts_per_token, a_.choice.weights.data());
}

}  // namespace hearth::worker
