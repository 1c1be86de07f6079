// The gated delta net of the fast CPU backend, recurrent: Yang et al., "Gated Delta Networks",
// 2024, as docs/model.md says it. Columns of a state never meet, so that each thread takes some.
#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/fast_ops.h"
#include "services/gpu-worker/ops/vector_math.h"

namespace hearth::worker {
namespace {

constexpr float kL2Eps = 1e-6f;
constexpr int64_t kColumns = 32;  // of a state: 16 KB at dk = 128, half a first-level cache
constexpr int64_t kConvolvedColumns = 2048;

}  // namespace

void FastOps::SplitQkvz(const DeltaShape& shape, int n_rows, const float* qkvz, float* mixed,
                        float* z) {
  const int64_t row = shape.channels() + int64_t{shape.value_heads} * shape.value_dim;
  const int64_t values = int64_t{shape.value_heads} * shape.value_dim;
  if (n_rows <= 4) return exact_.SplitQkvz(shape, n_rows, qkvz, mixed, z);
  parallel_.Each(n_rows, [&](int64_t t) {
    exact_.SplitQkvz(shape, 1, qkvz + t * row, mixed + t * shape.channels(), z + t * values);
  });
}

void FastOps::Convolve(int n_rows, int channels, int width, const float* kernel, const float* input,
                       float* history, float* out) {
  const int n_past = width - 1;
  // Input of row t, counted from the oldest one in the history.
  const auto input_row = [&](int64_t t) {
    return t < n_past ? history + t * channels : input + (t - n_past) * channels;
  };
  const int64_t n_pieces = (channels + kConvolvedColumns - 1) / kConvolvedColumns;
  parallel_.Each(n_rows * n_pieces, [&](int64_t i) {
    const int64_t t = i / n_pieces, first = i % n_pieces * kConvolvedColumns;
    std::vector<const float*> rows(static_cast<size_t>(width));
    for (int w = 0; w < width; ++w) rows[static_cast<size_t>(w)] = input_row(t + w) + first;
    kernels_.convolve(rows.data(), kernel + first, channels, width,
                      std::min(kConvolvedColumns, channels - first), out + t * channels + first);
  });
  // Row i never reads a row that was overwritten: sources lie ahead.
  for (int64_t i = 0; i < n_past; ++i) {
    const float* from = input_row(n_rows + i);
    if (from != history + i * channels) std::copy_n(from, channels, history + i * channels);
  }
}

void FastOps::DeltaRule(const DeltaShape& shape, const DeltaWeights& weights, int n_rows,
                        const float* mixed, const float* ba, const float* z, float* state,
                        float* out) {
  const int64_t dk = shape.key_dim, dv = shape.value_dim, heads = shape.value_heads;
  if (dk % 4 != 0 || dv % 16 != 0) {
    return exact_.DeltaRule(shape, weights, n_rows, mixed, ba, z, state, out);
  }
  const int share = shape.value_heads / shape.key_heads;
  const int64_t n_keys = int64_t{shape.key_heads} * dk;
  q_.resize(static_cast<size_t>(n_rows * n_keys));
  k_.resize(q_.size());
  decay_.resize(static_cast<size_t>(n_rows * heads));
  beta_.resize(decay_.size());

  const auto prepare = [&](int64_t t) {
    const float* row = mixed + t * shape.channels();
    for (int64_t h = 0; h < shape.key_heads; ++h) {
      kernels_.l2_normalize(row + h * dk, dk, kL2Eps, 1 / std::sqrt(static_cast<float>(dk)),
                            q_.data() + t * n_keys + h * dk);
      kernels_.l2_normalize(row + n_keys + h * dk, dk, kL2Eps, 1, k_.data() + t * n_keys + h * dk);
    }
    for (int64_t j = 0; j < heads; ++j) {
      const float* gates = ba + (t * shape.key_heads + j / share) * 2 * share;
      beta_[static_cast<size_t>(t * heads + j)] = Sigmoid(gates[j % share]);
      decay_[static_cast<size_t>(t * heads + j)] = std::exp(
          -std::exp(weights.a_log[j]) * Softplus(gates[share + j % share] + weights.dt_bias[j]));
    }
  };
  // A piece is some columns of a head over all rows; its part of the state is copied into one
  // stretch where it is used again and again.
  const auto columns = [&](int64_t j, int64_t first, int64_t n) {
    Kernels::DeltaArgs args{.n_rows = n_rows,
                            .dk = static_cast<int>(dk),
                            .n_columns = static_cast<int>(n),
                            .q = q_.data() + j / share * dk,
                            .k = k_.data() + j / share * dk,
                            .qk_stride = n_keys,
                            .v = mixed + 2 * n_keys + j * dv + first,
                            .v_stride = shape.channels(),
                            .decay = decay_.data() + j,
                            .beta = beta_.data() + j,
                            .gate_stride = heads,
                            .state = state + j * dk * dv + first,
                            .state_stride = dv,
                            .out = out + j * dv + first,
                            .out_stride = heads * dv};
    if (n_rows == 1) return kernels_.delta_rule(args);
    std::vector<float> local(static_cast<size_t>(dk * n));
    float* home = args.state;
    for (int64_t i = 0; i < dk; ++i) std::copy_n(home + i * dv, n, local.data() + i * n);
    args.state = local.data();
    args.state_stride = n;
    kernels_.delta_rule(args);
    for (int64_t i = 0; i < dk; ++i) std::copy_n(local.data() + i * n, n, home + i * dv);
  };
  const auto norm = [&](int64_t t, int64_t j) {
    const int64_t at = (t * heads + j) * dv;
    kernels_.gated_norm(weights.norm, z + at, weights.eps, dv, out + at);
  };

  if (n_rows == 1) {
    prepare(0);
    parallel_.Each(heads, [&](int64_t j) {
      for (int64_t first = 0; first < dv; first += kColumns) {
        columns(j, first, std::min(kColumns, dv - first));
      }
      norm(0, j);
    });
    return;
  }
  parallel_.Each(n_rows, prepare);
  const int64_t n_pieces = (dv + kColumns - 1) / kColumns;
  parallel_.Each(heads * n_pieces, [&](int64_t i) {
    const int64_t first = i % n_pieces * kColumns;
    columns(i / n_pieces, first, std::min(kColumns, dv - first));
  });
  parallel_.Each(n_rows, [&](int64_t t) {
    for (int64_t j = 0; j < heads; ++j) norm(t, j);
  });
}

}  // namespace hearth::worker
