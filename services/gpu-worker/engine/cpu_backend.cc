#include "services/gpu-worker/engine/cpu_backend.h"

#include <algorithm>
#include <map>
#include <utility>

#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/rotary.h"

namespace hearth::worker {

CpuBackend::CpuBackend(const ModelConfig& config, Ops* ops, ExpertSource* experts, int max_rows,
                       RoutingOverride* routing)
    : ops_(*ops),
      experts_(*experts),
      routing_(routing),
      n_layers_(config.n_layers),
      conv_width_(config.conv_width),
      rotary_(MakeRotaryTable(config.rope)) {
  const int64_t rows = max_rows;
  shared_ = Allocate(rows * config.hidden_size);
  gate_ = Allocate(rows * config.n_heads * config.head_dim);
  mixed_ = Allocate(rows * config.conv_channels());
  convolved_ = Allocate(rows * config.conv_channels());
  z_ = Allocate(rows * config.linear_value_heads * config.linear_value_head_dim);
}

float* CpuBackend::Allocate(int64_t n) {
  return memory_.emplace_back(static_cast<size_t>(n)).data();
}

absl::Status CpuBackend::Begin(const Batch& batch) {
  batch_ = &batch;
  return absl::OkStatus();
}

void CpuBackend::Embed(const LinearRef& table, float* x) { ops_.Embed(table, batch_->ids, x); }

void CpuBackend::AddRmsNorm(int width, float* x, const float* delta, const float* weight, float eps,
                            float* h) {
  ops_.AddRmsNorm(n_rows(), width, x, delta, weight, eps, h);
}

void CpuBackend::Linears(std::span<const Product> products, const float* x) {
  for (const Product& product : products) ops_.Linear(*product.weights, n_rows(), x, product.y);
}

void CpuBackend::RotateAndStore(const AttentionShape& shape, int attention_layer,
                                const AttentionNorms& norms, const float* query_gate, float* k,
                                const float* v, float* q) {
  const int64_t kv_row = int64_t{shape.n_kv_heads} * shape.head_dim;
  ops_.PrepareQueryKey(shape, n_rows(), batch_->positions.data(), rotary_, query_gate, norms.q,
                       norms.k, norms.eps, q, gate_, k);
  for (const BatchItem& item : batch_->items) {
    const int64_t at = item.rows.begin * kv_row;
    ops_.StoreKv(shape, item.rows.size(), item.first_position, k + at, v + at,
                 Of(item).Pages(attention_layer));
  }
}

void CpuBackend::Attention(const AttentionShape& shape, int attention_layer, const float* q,
                           const float*, float* out) {
  const int64_t q_row = int64_t{shape.n_heads} * shape.head_dim;
  for (const BatchItem& item : batch_->items) {
    const int64_t at = item.rows.begin * q_row;
    ops_.Attention(shape, item.rows.size(), item.first_position, q + at, gate_ + at,
                   Of(item).Pages(attention_layer), out + at);
  }
}

void CpuBackend::DeltaRule(const DeltaShape& shape, int delta_layer, const DeltaWeights& weights,
                           const float* qkvz, const float* ba, float* out) {
  ops_.SplitQkvz(shape, n_rows(), qkvz, mixed_, z_);
  for (const BatchItem& item : batch_->items) {
    CpuSequence& sequence = Of(item);
    const int first_draft = item.rows.end - item.n_drafts;
    DeltaRows(shape, delta_layer, weights, sequence, {item.rows.begin, first_draft}, ba, out);
    for (int draft = 0; draft < item.n_drafts; ++draft) {  // each may be the first one refused
      sequence.KeepDeltaState(delta_layer, draft);
      const int row = first_draft + draft;
      DeltaRows(shape, delta_layer, weights, sequence, {row, row + 1}, ba, out);
    }
  }
}

void CpuBackend::DeltaRows(const DeltaShape& shape, int delta_layer, const DeltaWeights& weights,
                           CpuSequence& sequence, RowRange rows, const float* ba, float* out) {
  const int64_t channels = shape.channels(), values = int64_t{shape.value_heads} * shape.value_dim;
  const int64_t row = rows.begin;
  ops_.Convolve(rows.size(), static_cast<int>(channels), conv_width_, weights.conv,
                mixed_ + row * channels, sequence.conv_history(delta_layer).data(),
                convolved_ + row * channels);
  ops_.DeltaRule(shape, {weights.a_log, weights.dt_bias, weights.norm, weights.eps}, rows.size(),
                 convolved_ + row * channels, ba + row * 2 * shape.value_heads, z_ + row * values,
                 sequence.recurrent(delta_layer).data(), out + row * values);
}

void CpuBackend::Route(const Routing& routing) {
  ops_.Route(n_rows(), routing.n_experts, routing.top_k, routing.normalise, routing.logits,
             &choice_);
  if (routing_ != nullptr && routing.layer < n_layers_) Impose(routing.layer, routing.top_k);
}

void CpuBackend::Impose(int layer, int top_k) {
  std::vector<RoutingOverride::Rows> items;
  for (const BatchItem& item : batch_->items) {
    items.push_back({item.rows.begin, item.rows.end, item.first_position});
  }
  routing_->Impose(layer, items, top_k, choice_.ids);
}

absl::Status CpuBackend::Experts(const Routing& routing, const SharedExpert& shared, int width,
                                 const float* h, float* out) {
  Route(routing);
  std::map<int32_t, ExpertWork> work;  // by expert
  for (int32_t place = 0; place < n_rows() * routing.top_k; ++place) {
    ExpertWork& item = work[choice_.ids[static_cast<size_t>(place)]];
    item.rows.push_back(place / routing.top_k);
    item.places.push_back(place);
  }
  std::vector<ExpertWork> list;
  for (auto& [expert, item] : work) {
    HEARTH_ASSIGN_OR_RETURN(item.expert, experts_.Get(routing.layer, expert));
    list.push_back(std::move(item));
  }
  ops_.Experts(n_rows(), width, routing.top_k, h, list, choice_, out);
  ops_.Mlp(shared.mlp, n_rows(), h, shared_);
  ops_.AddGated(n_rows(), width, shared_, shared.gate, out);
  return absl::OkStatus();
}

void CpuBackend::Mlp(const ExpertRef& mlp, const float* h, float* out) {
  ops_.Mlp(mlp, n_rows(), h, out);
}

void CpuBackend::Head(const LinearRef& head, const float* h) {
  // Only the rows whose logits are wanted go through the head.
  const auto n = batch_->logits_rows.size();
  head_rows_.resize(n * static_cast<size_t>(head.in));
  for (size_t r = 0; r < n; ++r) {
    std::copy_n(h + batch_->logits_rows[r] * head.in, head.in,
                head_rows_.data() + static_cast<int64_t>(r) * head.in);
  }
  logits_.resize(n * static_cast<size_t>(head.out));
  ops_.Linear(head, static_cast<int>(n), head_rows_.data(), logits_.data());
}

void CpuBackend::ShiftHidden(int width, const float* h, float* before) {
  const int64_t columns = width;
  for (const BatchItem& item : batch_->items) {
    float* first = before + item.rows.begin * columns;
    if (item.first_position == 0) {
      std::fill_n(first, columns, 0.F);
    } else {
      std::ranges::copy(Of(item).hidden(), first);
    }
    std::copy_n(h + item.rows.begin * columns, (item.rows.size() - 1) * columns, first + columns);
    const int n_kept = item.n_drafts + 1;
    Of(item).KeepHidden({h + (item.rows.end - n_kept) * columns,
                         static_cast<size_t>(n_kept) * static_cast<size_t>(width)});
  }
}

void CpuBackend::LoadHidden(int width, bool of_draft, float* out) {
  for (const BatchItem& item : batch_->items) {
    std::ranges::copy(of_draft ? Of(item).draft_hidden() : Of(item).hidden(),
                      out + int64_t{item.rows.begin} * width);
  }
}

void CpuBackend::KeepDraftHidden(int width, const float* h) {
  for (const BatchItem& item : batch_->items) {
    std::copy_n(h + int64_t{item.rows.begin} * width, width, Of(item).draft_hidden().data());
  }
}

void CpuBackend::Join(int width, const float* a, const float* b, float* out) {
  for (int64_t row = 0; row < n_rows(); ++row) {
    std::copy_n(a + row * width, width, out + row * 2 * width);
    std::copy_n(b + row * width, width, out + row * 2 * width + width);
  }
}

void CpuBackend::StoreOneBefore(const AttentionShape& shape, int attention_layer,
                                const AttentionNorms& norms, float* k, const float* v) {
  const int64_t kv_row = int64_t{shape.n_kv_heads} * shape.head_dim;
  std::vector<int64_t> positions = batch_->positions;
  for (int64_t& position : positions) position = std::max<int64_t>(0, position - 1);
  AttentionShape keys_alone = shape;
  keys_alone.n_heads = 0;
  ops_.PrepareQueryKey(keys_alone, n_rows(), positions.data(), rotary_, nullptr, nullptr, norms.k,
                       norms.eps, nullptr, nullptr, k);
  for (const BatchItem& item : batch_->items) {
    const int n_left_out = item.first_position == 0 ? 1 : 0;
    const int64_t at = (item.rows.begin + n_left_out) * kv_row;
    ops_.StoreKv(shape, item.rows.size() - n_left_out, item.first_position - 1 + n_left_out, k + at,
                 v + at, Of(item).Pages(attention_layer));
  }
}

absl::Status CpuBackend::Finish(float* logits) {
  std::ranges::copy(logits_, logits);
  return absl::OkStatus();
}

}  // namespace hearth::worker
