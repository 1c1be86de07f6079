// Gated attention over KV pages and the router, float32.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "services/gpu-worker/ops/exact_ops.h"
#include "services/gpu-worker/ops/vector_math.h"

namespace hearth::worker {
namespace {

// Norm with weight 1 + w, then rotation of pairs (j, j + r / 2); `cosines`, `sines` [r / 2].
void NormAndRotate(const float* from, int head_dim, const float* norm, float eps,
                   const std::vector<float>& cosines, const std::vector<float>& sines, float* to) {
  const float mean = Dot(from, from, head_dim) / static_cast<float>(head_dim);
  const float scale = 1 / std::sqrt(mean + eps);
  for (int i = 0; i < head_dim; ++i) to[i] = from[i] * scale * (1 + norm[i]);
  const size_t half = cosines.size();
  for (size_t j = 0; j < half; ++j) {
    const float a = to[j], b = to[j + half];
    to[j] = a * cosines[j] - b * sines[j];
    to[j + half] = b * cosines[j] + a * sines[j];
  }
}

// Online softmax (Milakov and Gimelshein, 2018) over one query head: pages in order from position
// 0.
class SoftmaxSum {
 public:
  SoftmaxSum(int head_dim, float* out) : head_dim_(head_dim), out_(out) {
    std::fill_n(out, head_dim, 0.f);
  }
  void AddPage(const float* scores, int n, const float* values, int64_t stride) {
    const float largest = std::max(largest_, *std::max_element(scores, scores + n));
    if (largest > largest_) {
      const float shrink = std::exp(largest_ - largest);  // 0 for the first page
      sum_ *= shrink;
      for (int i = 0; i < head_dim_; ++i) out_[i] *= shrink;
      largest_ = largest;
    }
    for (int p = 0; p < n; ++p) {
      const float weight = std::exp(scores[p] - largest_);
      sum_ += weight;
      AddScaled(weight, values + p * stride, head_dim_, out_);
    }
  }
  float sum() const { return sum_; }

 private:
  const int head_dim_;
  float* out_;
  float largest_ = -std::numeric_limits<float>::infinity();
  float sum_ = 0;
};

void AttendOneHead(const AttentionShape& shape, int head, int64_t position, const float* q,
                   const float* gate, const KvPages& pages, std::vector<float>& scores,
                   float* out) {
  const int64_t stride = int64_t{shape.n_kv_heads} * shape.head_dim;
  const int kv_head = head / (shape.n_heads / shape.n_kv_heads);
  const float scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  SoftmaxSum softmax(shape.head_dim, out);
  for (int64_t first = 0; first <= position; first += pages.page_tokens) {
    const auto page = static_cast<size_t>(first / pages.page_tokens);
    const int n = static_cast<int>(std::min<int64_t>(pages.page_tokens, position + 1 - first));
    const float* keys = pages.keys[page] + kv_head * shape.head_dim;
    for (int p = 0; p < n; ++p) {
      scores[static_cast<size_t>(p)] = Dot(q, keys + p * stride, shape.head_dim) * scale;
    }
    softmax.AddPage(scores.data(), n, pages.values[page] + kv_head * shape.head_dim, stride);
  }
  for (int i = 0; i < shape.head_dim; ++i) out[i] = out[i] / softmax.sum() * Sigmoid(gate[i]);
}

}  // namespace

void ExactOps::PrepareQueryKey(const AttentionShape& shape, int n_rows, const int64_t* positions,
                               const RotaryTable& rotary, const float* query_gate,
                               const float* q_norm, const float* k_norm, float eps, float* q,
                               float* gate, float* k) {
  const int d = shape.head_dim;
  const size_t half = rotary.inverse_frequencies.size();
  const int64_t work = int64_t{shape.n_heads + shape.n_kv_heads} * d * 6;
  parallel_.For(n_rows, 4, work, [&](int64_t begin, int64_t end) {
    std::vector<float> cosines(half), sines(half);
    for (int64_t t = begin; t < end; ++t) {
      for (size_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(positions[t]) * rotary.inverse_frequencies[j];
        cosines[j] = static_cast<float>(std::cos(angle) * rotary.scale);
        sines[j] = static_cast<float>(std::sin(angle) * rotary.scale);
      }
      for (int h = 0; h < shape.n_heads; ++h) {
        const int64_t head = t * shape.n_heads + h;
        const float* from = query_gate + head * 2 * d;
        NormAndRotate(from, d, q_norm, eps, cosines, sines, q + head * d);
        std::copy_n(from + d, d, gate + head * d);
      }
      for (int g = 0; g < shape.n_kv_heads; ++g) {
        float* key = k + (t * shape.n_kv_heads + g) * d;
        NormAndRotate(key, d, k_norm, eps, cosines, sines, key);
      }
    }
  });
}

void ExactOps::StoreKv(const AttentionShape& shape, int n_rows, int64_t first, const float* k,
                       const float* v, const KvPages& pages) {
  const int64_t row = int64_t{shape.n_kv_heads} * shape.head_dim;
  for (int t = 0; t < n_rows; ++t) {
    const auto page = static_cast<size_t>((first + t) / pages.page_tokens);
    const int64_t at = (first + t) % pages.page_tokens * row;
    std::copy_n(k + t * row, row, pages.keys[page] + at);
    std::copy_n(v + t * row, row, pages.values[page] + at);
  }
}

void ExactOps::Attention(const AttentionShape& shape, int n_rows, int64_t first, const float* q,
                         const float* gate, const KvPages& pages, float* out) {
  const int64_t work = (first + n_rows) * shape.head_dim * 2;
  parallel_.For(int64_t{n_rows} * shape.n_heads, 4, work, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(static_cast<size_t>(pages.page_tokens));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * shape.head_dim;
      AttendOneHead(shape, static_cast<int>(i % shape.n_heads), first + i / shape.n_heads, q + at,
                    gate + at, pages, scores, out + at);
    }
  });
}

void ExactOps::Route(int n_rows, int n_experts, int top_k, bool normalise, const float* logits,
                     RouterChoice* choice) {
  choice->ids.resize(static_cast<size_t>(n_rows) * static_cast<size_t>(top_k));
  choice->weights.resize(choice->ids.size());
  std::vector<float> left(static_cast<size_t>(n_experts));
  for (int t = 0; t < n_rows; ++t) {
    const float* row = logits + int64_t{t} * n_experts;
    std::copy_n(row, n_experts, left.begin());
    const float largest = *std::max_element(row, row + n_experts);
    float total = 0;
    for (int e = 0; e < n_experts; ++e) total += std::exp(row[e] - largest);
    float* weights = choice->weights.data() + int64_t{t} * top_k;
    float chosen = 0;
    for (int k = 0; k < top_k; ++k) {
      const auto best = std::max_element(left.begin(), left.end());  // the first of equal ones
      weights[k] = std::exp(*best - largest) / total;
      chosen += weights[k];
      choice->ids[static_cast<size_t>(int64_t{t} * top_k + k)] =
          static_cast<int32_t>(best - left.begin());
      *best = -std::numeric_limits<float>::infinity();
    }
    if (normalise) {
      for (int k = 0; k < top_k; ++k) weights[k] /= chosen;
    }
  }
}

}  // namespace hearth::worker
