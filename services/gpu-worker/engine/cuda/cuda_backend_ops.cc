// The ops of CudaBackend but those of the experts: each call enqueues kernels.
#include <algorithm>

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

void CudaBackend::AddRmsNorm(int width, float* x, const float* delta, const float* weight,
                             float eps, float* h) {
  Keep(AddRmsNormCuda(rows_.total(), width, x, {.delta = delta}, weight, eps, h,
                      Round(h, width, &rounded_h_), stream_.get()),
       "norm");
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
  if (!is_decode()) return PrefillLinears(products, x);
  FewRowsLinears(products, rows_.total(), x);
}

void CudaBackend::FewRowsLinears(std::span<const Product> products, int n_rows, const float* x) {
  DecodeLinear jobs[kMaxDecodeLinears];
  int n_jobs = 0;
  for (const Product& product : products) {
    const LinearRef& weights = *product.weights;
    DecodeLinear job{.weights = MatrixOf(weights), .y = product.y};
    bool is_job = !shape_.exact && n_jobs < kMaxDecodeLinears;
    switch (weights.kind) {
      case WeightKind::kTiled4: {
        const std::optional<DecodeLevels>& levels = LevelsOf(job.weights.levels.values);
        is_job = is_job && levels.has_value();
        if (is_job) job.levels = *levels;
        break;
      }
      case WeightKind::kTiled8:
        job.kind = DecodeKind::kTiled8;
        break;
      case WeightKind::kBF16:
        job.kind = DecodeKind::kBf16;
        break;
      default:
        is_job = false;
    }
    if (is_job) {
      jobs[n_jobs++] = job;
    } else {
      FewRows(weights, n_rows, x, product.y);
    }
  }
  if (n_jobs > 0)
    Keep(DecodeLinearsCuda(jobs, n_jobs, n_rows, x, RoundedOf(x), stream_.get()), "linears");
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
  Keep(RotateAndStoreCuda(shape, rows_, {norms.q, norms.k, norms.eps}, rotary_table_, positions_,
                          query_gate, k, v, KvOf(attention_layer), q, stream_.get()),
       "rotary");
}

void CudaBackend::Attention(const AttentionShape& shape, int attention_layer, const float* q,
                            const float* query_gate, float* out) {
  const DeviceKv kv = KvOf(attention_layer);
  if (is_decode()) {
    return Keep(AttentionCuda(shape, rows_, positions_, position_bucket_, q, query_gate, kv,
                              attention_scratch_, out, Round(out, shape.head_dim, &rounded_mixer_),
                              stream_.get()),
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
  const DeltaInputs inputs{mixed_, decay_, beta_, DraftsOf(delta_layer)};
  Keep(ConvolveCuda(shape, rows_,
                    {config_.conv_width, weights.conv, weights.a_log, weights.dt_bias}, qkvz, ba,
                    histories_ + int64_t{delta_layer} * kDecodeRows, inputs, stream_.get()),
       "convolution");
  float* const* states = states_ + int64_t{delta_layer} * kDecodeRows;
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
