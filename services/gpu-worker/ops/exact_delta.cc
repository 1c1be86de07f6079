// The gated delta net of the float32 backend, recurrent: Yang et al., "Gated Delta Networks", 2024,
// as docs/model.md says it.
#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/exact_ops.h"
#include "services/gpu-worker/ops/vector_math.h"

namespace hearth::worker {
namespace {

constexpr float kL2Eps = 1e-6f;

// to = from / |from| * scale.
void Normalise(const float* from, int n, float scale, float* to) {
  const float factor = scale / std::sqrt(Dot(from, from, n) + kL2Eps);
  for (int i = 0; i < n; ++i) to[i] = from[i] * factor;
}

// One token of one value head. `change` and `out` [dv]; out is q^T S after the update.
void UpdateState(const DeltaShape& shape, const float* q, const float* k, const float* v,
                 float beta, float decay, float* state, float* change, float* out) {
  const int dk = shape.key_dim, dv = shape.value_dim;
  std::fill_n(change, dv, 0.f);
  for (int i = 0; i < dk; ++i) ScaleThenAddTo(decay, state + i * dv, k[i], dv, change);
  for (int j = 0; j < dv; ++j) change[j] = beta * (v[j] - change[j]);
  std::fill_n(out, dv, 0.f);
  for (int i = 0; i < dk; ++i) AddThenAddTo(k[i], change, state + i * dv, q[i], dv, out);
}

}  // namespace

void ExactOps::SplitQkvz(const DeltaShape& shape, int n_rows, const float* qkvz, float* mixed,
                         float* z) {
  const int dk = shape.key_dim, share = shape.value_heads / shape.key_heads * shape.value_dim;
  const int64_t n_keys = int64_t{shape.key_heads} * dk;
  const int64_t group = 2 * dk + 2 * share, n_values = int64_t{shape.value_heads} * shape.value_dim;
  for (int t = 0; t < n_rows; ++t) {
    float* row = mixed + int64_t{t} * shape.channels();
    for (int h = 0; h < shape.key_heads; ++h) {
      const float* from = qkvz + (int64_t{t} * shape.key_heads + h) * group;
      std::copy_n(from, dk, row + h * dk);
      std::copy_n(from + dk, dk, row + n_keys + h * dk);
      std::copy_n(from + 2 * dk, share, row + 2 * n_keys + h * share);
      std::copy_n(from + 2 * dk + share, share, z + t * n_values + h * share);
    }
  }
}

void ExactOps::Convolve(int n_rows, int channels, int width, const float* kernel,
                        const float* input, float* history, float* out) {
  const int n_past = width - 1;
  // Input of row t, counted from the oldest one in the history.
  const auto input_row = [&](int64_t t) {
    return t < n_past ? history + t * channels : input + (t - n_past) * channels;
  };
  parallel_.For(n_rows, 8, int64_t{channels} * width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* to = out + t * channels;
      std::fill_n(to, channels, 0.f);
      for (int w = 0; w < width; ++w) {
        const float* from = input_row(t + w);
        const float* weights = kernel + int64_t{w} * channels;
        for (int c = 0; c < channels; ++c) to[c] += weights[c] * from[c];
      }
      for (int c = 0; c < channels; ++c) to[c] = Silu(to[c]);
    }
  });
  for (int64_t i = 0; i < n_past;
       ++i) {  // row i never reads a row that was overwritten: sources lie ahead
    const float* from = input_row(n_rows + i);
    if (from != history + i * channels) std::copy_n(from, channels, history + i * channels);
  }
}

void ExactOps::DeltaRule(const DeltaShape& shape, const DeltaWeights& weights, int n_rows,
                         const float* mixed, const float* ba, const float* z, float* state,
                         float* out) {
  const int dk = shape.key_dim, dv = shape.value_dim;
  const int share = shape.value_heads / shape.key_heads;
  const int64_t work = int64_t{n_rows} * dk * dv * 4;
  parallel_.For(shape.value_heads, 1, work, [&](int64_t begin, int64_t end) {
    std::vector<float> q(static_cast<size_t>(dk)), k(q.size()), change(static_cast<size_t>(dv));
    for (int64_t j = begin; j < end; ++j) {
      const int64_t key_head = j / share;
      const float rate = -std::exp(weights.a_log[j]);
      for (int64_t t = 0; t < n_rows; ++t) {
        const float* row = mixed + t * shape.channels();
        Normalise(row + key_head * dk, dk, 1 / std::sqrt(static_cast<float>(dk)), q.data());
        Normalise(row + (shape.key_heads + key_head) * dk, dk, 1, k.data());
        const float* v = row + 2 * shape.key_heads * dk + j * dv;
        const float* gates = ba + (t * shape.key_heads + key_head) * 2 * share;
        const float beta = Sigmoid(gates[j % share]);
        const float decay =
            std::exp(rate * Softplus(gates[share + j % share] + weights.dt_bias[j]));
        float* to = out + (t * shape.value_heads + j) * dv;
        UpdateState(shape, q.data(), k.data(), v, beta, decay, state + j * dk * dv, change.data(),
                    to);
        const float scale = 1 / std::sqrt(Dot(to, to, dv) / static_cast<float>(dv) + weights.eps);
        const float* gate = z + (t * shape.value_heads + j) * dv;
        for (int i = 0; i < dv; ++i) to[i] = weights.norm[i] * (to[i] * scale) * Silu(gate[i]);
      }
    }
  });
}

}  // namespace hearth::worker
