// The ops of CudaBackend but those of the experts: each call enqueues kernels.
#include <algorithm>
#include <utility>

#include "services/gpu-worker/engine/cuda/cuda_backend.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/norm_cuda.h"
#include "services/gpu-worker/ops/cuda/prefill_attention.h"
#include "services/gpu-worker/ops/cuda/prefill_delta.h"
#include "services/gpu-worker/ops/cuda/prefill_linear.h"
#include "services/gpu-worker/ops/cuda/step_kernels.h"

namespace hearth::worker {
namespace {

DeviceMatrix MatrixOf(const LinearRef& ref) {
  DeviceMatrix matrix{
      .data = ref.data, .scales = ref.scales, .out = ref.out, .in = ref.in, .factor = ref.factor};
  std::ranges::copy(ref.levels, matrix.levels.values);
  return matrix;
}

}  // namespace

void CudaBackend::Embed(const LinearRef& table, float* x) {
  residual_of_ = residual_at_ = x;
  Keep(EmbedCuda(rows_.total(), static_cast<int>(table.in), embedding_bits_, embedding_, ids_, x,
                 stream_.get()),
       "embedding");
}

RoundedRows CudaBackend::Round(const float* of, int width, Rounded* to) {
  to->of = nullptr;
  if (shape_.exact || !is_decode() || width % 64 != 0) return {};
  to->of = of;
  return to->rows;
}

RoundedRows CudaBackend::RoundedOf(const float* x) const {
  return rounded_h_.of == x       ? rounded_h_.rows
         : rounded_mixer_.of == x ? rounded_mixer_.rows
                                  : RoundedRows{};
}

bool CudaBackend::CanFoldNorm(int width, const float* h) const {
  return !shape_.exact && rows_.total() <= kMaxNormedRows && h != nullptr && width % 64 == 0 &&
         width <= kMaxNormedWidth;
}

void CudaBackend::AddRmsNorm(int width, float* x, const float* delta, const float* weight,
                             float eps, float* h) {
  FlushNorm();
  pending_norm_ = {width, x, delta, weight, eps, h};
  if (!CanFoldNorm(width, h) || x != residual_of_) FlushNorm();
}

void CudaBackend::FlushNorm() {
  const PendingNorm norm = std::exchange(pending_norm_, {});
  if (norm.x == nullptr) return;
  Keep(AddRmsNormCuda(rows_.total(), norm.width, ResidualOf(norm.x), {.delta = norm.delta},
                      norm.weight, norm.eps, norm.h, Round(norm.h, norm.width, &rounded_h_),
                      stream_.get()),
       "norm");
}

// The pending norm and linears of what it gives.
void CudaBackend::FoldNorm(const DecodeLinear* linears, int n_linears) {
  const PendingNorm norm = std::exchange(pending_norm_, {});
  float* const from = ResidualOf(norm.x);
  // Of the two buffers, the one that it is not in.
  float* const other = from == norm.x ? residual_spare_ : norm.x;
  Keep(NormedDecodeLinearsCuda(linears, n_linears, rows_.total(),
                               {.x = from,
                                .delta = norm.delta,
                                .weight = norm.weight,
                                .eps = norm.eps,
                                .sum = other,
                                .h = norm.h,
                                .rounded = Round(norm.h, norm.width, &rounded_h_)},
                               stream_.get()),
       "norm and linears");
  if (norm.delta != nullptr) residual_at_ = other;
}

const std::optional<DecodeLevels>& CudaBackend::LevelsOf(const float (&levels)[16]) {
  for (const auto& [known, made] : levels_) {
    if (std::ranges::equal(known, levels)) return made;
  }
  std::array<float, 16> values;
  std::ranges::copy(levels, values.begin());
  return levels_.emplace_back(values, MakeDecodeLevels(values)).second;
}

// Up to kDecodeRows rows by the float32 kernels, or what no faster kernel reads.
void CudaBackend::FewRows(const LinearRef& weights, int n_rows, const float* x, float* y) {
  const DeviceMatrix matrix = MatrixOf(weights);
  switch (weights.kind) {
    case WeightKind::kTiled4:
      return Keep(Tiled4LinearCuda(matrix, n_rows, x, y, stream_.get()), "linear");
    case WeightKind::kTiled8:
      return Keep(Tiled8LinearCuda(matrix, n_rows, x, y, stream_.get()), "linear");
    case WeightKind::kF32:
      return Keep(F32LinearCuda(static_cast<const float*>(matrix.data), matrix.out, matrix.in,
                                n_rows, x, y, stream_.get()),
                  "linear");
    default:
      return Keep(Bf16LinearCuda(matrix, n_rows, x, y, stream_.get()), "linear");
  }
}

void CudaBackend::Linears(std::span<const Product> products, const float* x) {
  if (!is_decode()) return PrefillLinears(products, x);  // which has no pending norm
  FewRowsLinears(products, rows_.total(), x);
}

void CudaBackend::FewRowsLinears(std::span<const Product> products, int n_rows, const float* x) {
  DecodeLinear jobs[kMaxDecodeLinears];
  const Product* others[kMaxDecodeLinears];
  int n_jobs = 0, n_others = 0;
  HEARTH_CHECK(products.size() <= kMaxDecodeLinears);
  for (const Product& product : products) {
    const std::optional<DecodeLinear> job = JobOf(product);
    if (job.has_value()) {
      jobs[n_jobs++] = *job;
    } else {
      others[n_others++] = &product;
    }
  }
  if (n_jobs > 0 && x == pending_norm_.h) {
    FoldNorm(jobs, n_jobs);
  } else {
    FlushNorm();
    if (n_jobs > 0) {
      Keep(DecodeLinearsCuda(jobs, n_jobs, n_rows, x, RoundedOf(x), stream_.get()), "linears");
    }
  }
  for (int i = 0; i < n_others; ++i) FewRows(*others[i]->weights, n_rows, x, others[i]->y);
}

// Nothing where the integer kernels don't read the weights, or must not.
std::optional<DecodeLinear> CudaBackend::JobOf(const Product& product) {
  if (shape_.exact) return std::nullopt;
  DecodeLinear job{.weights = MatrixOf(*product.weights), .y = product.y};
  switch (product.weights->kind) {
    case WeightKind::kTiled4: {
      const std::optional<DecodeLevels>& levels = LevelsOf(job.weights.levels.values);
      if (!levels.has_value()) return std::nullopt;
      job.levels = *levels;
      return job;
    }
    case WeightKind::kTiled8:
      job.kind = DecodeKind::kTiled8;
      return job;
    case WeightKind::kBF16:
      job.kind = DecodeKind::kBf16;
      return job;
    default:
      return std::nullopt;
  }
}

void CudaBackend::PrefillLinears(std::span<const Product> products, const float* x) {
  const auto is = [](WeightKind kind) {
    return [kind](const Product& product) { return product.weights->kind == kind; };
  };
  const auto width = static_cast<int>(products.front().weights->in);
  const int n = rows_.total();
  if (std::ranges::any_of(products, is(WeightKind::kTiled4)) ||
      std::ranges::any_of(products, is(WeightKind::kTiled8))) {
    Keep(ToHalfRowsCuda(n, width, x, half_rows_, stream_.get()), "rows");
  }
  if (std::ranges::any_of(products, is(WeightKind::kBF16))) {
    Keep(ToSplitRowsCuda(n, width, x, high_rows_, low_rows_, stream_.get()), "rows");
  }
  for (const Product& product : products) {
    if (product.weights->kind == WeightKind::kF32) {
      FewRows(*product.weights, n, x, product.y);
      continue;
    }
    Keep(PrefillLinearCuda(product.weights->kind, MatrixOf(*product.weights), n,
                           {half_rows_, high_rows_, low_rows_}, product.y, stream_.get()),
         "linear of a prefill");
  }
}

DeviceKv CudaBackend::KvOf(int attention_layer) const {
  return {.type = state_->shape().kv_type,
          .keys = state_->Keys(attention_layer),
          .values = state_->Values(attention_layer),
          .table = page_table_,
          .max_pages = static_cast<int>(max_pages_),
          .page_tokens = state_->shape().page_tokens,
          .key_scales = state_->KeyScales(attention_layer),
          .value_scales = state_->ValueScales(attention_layer)};
}

void CudaBackend::RotateAndStore(const AttentionShape& shape, int attention_layer,
                                 const AttentionNorms& norms, const float* query_gate, float* k,
                                 const float* v, float* q) {
  if (is_decode() && rows_.n_rows == 1 && CanRotateAndAttend(shape)) {
    pending_rotary_ = {{norms.q, norms.k, norms.eps}, rotary_table_, k, v};
    return;
  }
  Keep(RotateAndStoreCuda(shape, rows_, {norms.q, norms.k, norms.eps}, rotary_table_, positions_,
                          query_gate, k, v, KvOf(attention_layer), q, stream_.get()),
       "rotary");
}

void CudaBackend::Attention(const AttentionShape& shape, int attention_layer, const float* q,
                            const float* query_gate, float* out) {
  const DeviceKv kv = KvOf(attention_layer);
  if (is_decode()) {
    const RoundedRows rounded = Round(out, shape.head_dim, &rounded_mixer_);
    const NewPosition made = std::exchange(pending_rotary_, {});
    return Keep(
        made.k != nullptr
            ? RotateAndAttendCuda(shape, rows_.n_sequences, made, positions_, position_bucket_,
                                  query_gate, kv, attention_scratch_, out, rounded, stream_.get())
            : AttentionCuda(shape, rows_, positions_, position_bucket_, q, query_gate, kv,
                            attention_scratch_, out, rounded, stream_.get()),
        "attention");
  }
  if (kv.type == KvType::kBf16) {
    return Keep(PrefillAttentionCuda(shape, rows_.n_rows, positions_, q, query_gate, kv, out,
                                     stream_.get()),
                "attention of a prefill");
  }
  // The tensor-core kernel reads bf16 pages only: a few rows at a time.
  const int64_t q_row = int64_t{shape.n_heads} * shape.head_dim;
  for (int64_t row = 0; row < rows_.n_rows; row += kDecodeRows) {
    const auto n = static_cast<int>(std::min<int64_t>(kDecodeRows, rows_.n_rows - row));
    Keep(AttentionCuda(shape, {1, n}, positions_ + row, position_bucket_, q + row * q_row,
                       query_gate + row * 2 * q_row, kv, attention_scratch_, out + row * q_row,
                       stream_.get()),
         "attention of a prefill");
  }
}

void CudaBackend::DeltaRule(const DeltaShape& shape, int delta_layer, const DeltaWeights& weights,
                            const float* qkvz, const float* ba, float* out) {
  const ConvolveWeights convolution{config_.conv_width, weights.conv, weights.a_log,
                                    weights.dt_bias};
  float* const* histories = histories_ + int64_t{delta_layer} * kDecodeRows;
  float* const* states = states_ + int64_t{delta_layer} * kDecodeRows;
  if (is_decode() && rows_.n_rows == 1 && !has_pending_) {
    return Keep(DeltaStepCuda(shape, rows_.n_sequences,
                              {.weights = convolution,
                               .qkvz = qkvz,
                               .ba = ba,
                               .norm = weights.norm,
                               .eps = weights.eps,
                               .histories = histories,
                               .states = states,
                               .arrivals = delta_arrivals_},
                              out, Round(out, shape.value_dim, &rounded_mixer_), stream_.get()),
                "delta step");
  }
  const DeltaInputs inputs{mixed_, decay_, beta_, DraftsOf(delta_layer)};
  Keep(ConvolveCuda(shape, rows_, convolution, qkvz, ba, histories, inputs, stream_.get()),
       "convolution");
  if (!is_decode() && shape.key_dim % 16 == 0 && shape.value_dim % 16 == 0) {
    if (has_pending_) SeePending(shape, delta_layer);
    return Keep(PrefillDeltaRuleCuda(shape, rows_.n_rows, inputs, qkvz, weights.norm, weights.eps,
                                     states, delta_scratch_, out, stream_.get()),
                "delta rule of a prefill");
  }
  Keep(DeltaRuleCuda(shape, rows_, inputs, qkvz, weights.norm, weights.eps, states, out,
                     Round(out, shape.value_dim, &rounded_mixer_), 0, stream_.get()),
       "delta rule");
}

void CudaBackend::Mlp(const ExpertRef& mlp, const float* h, float* out) {
  const Product first[] = {{&mlp.gate, inner_}, {&mlp.up, inner2_}};
  Linears(first, h);
  Keep(SiluMulCuda(int64_t{rows_.total()} * mlp.gate.out, inner_, inner2_, stream_.get()), "silu");
  const Product second[] = {{&mlp.down, out}};
  Linears(second, inner_);
}

}  // namespace hearth::worker
