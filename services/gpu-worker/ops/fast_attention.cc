// Gated attention over KV pages of the fast CPU backend: queries that share a key/value head go
// through its pages together, in stretches of positions that several threads can take.
#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/fast_ops.h"

namespace hearth::worker {
namespace {

constexpr int kPart = 16;          // positions of one kernel call
constexpr int64_t kStretch = 512;  // positions whose sums are taken as one
constexpr float kLowest = -3.4e38f;

// Online softmax sums of some queries (Milakov and Gimelshein, 2018).
struct Sums {
  float* largest;  // [n]
  float* sum;      // [n]
  float* acc;      // [n, d]

  void Clear(int n, int head_dim) const {
    std::fill_n(largest, n, kLowest);
    std::fill_n(sum, n, 0.f);
    std::fill_n(acc, int64_t{n} * head_dim, 0.f);
  }
};

// What a row sees of one stretch.
void AttendStretch(const Kernels& kernels, const AttentionRow& row, int64_t begin, int64_t end,
                   const KvPages& pages, int64_t stride, int64_t head_offset, const Sums& sums) {
  sums.Clear(row.n_queries, row.head_dim);
  for (int64_t first = begin; first < end;) {
    const int64_t in_page = first % pages.page_tokens;
    const auto page = static_cast<size_t>(first / pages.page_tokens);
    const int n =
        static_cast<int>(std::min({int64_t{kPart}, pages.page_tokens - in_page, end - first}));
    const int64_t at = in_page * stride + head_offset;
    kernels.attend_page(row, n, pages.keys[page] + at, pages.values[page] + at, stride,
                        sums.largest, sums.sum, sums.acc);
    first += n;
  }
}

// into += part, for one query.
void Merge(const Kernels& kernels, int head_dim, const float* largest, const float* sum,
           const float* acc, float* into_largest, float* into_sum, float* into_acc) {
  const float top = std::max(*largest, *into_largest);
  const float keep = std::exp(*into_largest - top), take = std::exp(*largest - top);
  for (int i = 0; i < head_dim; ++i) into_acc[i] *= keep;
  kernels.add_scaled(take, acc, head_dim, into_acc);
  *into_sum = *into_sum * keep + *sum * take;
  *into_largest = top;
}

// Norm with weight 1 + w, then rotation of pairs (j, j + r / 2); `cosines`, `sines` [r / 2].
void NormAndRotate(const Kernels& kernels, float* values, int head_dim, const float* norm,
                   float eps, const std::vector<float>& cosines, const std::vector<float>& sines,
                   float* to) {
  kernels.add_rms_norm(values, nullptr, norm, eps, head_dim, to);
  const size_t half = cosines.size();
  for (size_t j = 0; j < half; ++j) {
    const float a = to[j], b = to[j + half];
    to[j] = a * cosines[j] - b * sines[j];
    to[j + half] = b * cosines[j] + a * sines[j];
  }
}

}  // namespace

void FastOps::PrepareQueryKey(const AttentionShape& shape, int n_rows, const int64_t* positions,
                              const RotaryTable& rotary, const float* query_gate,
                              const float* q_norm, const float* k_norm, float eps, float* q,
                              float* gate, float* k) {
  const int d = shape.head_dim;
  const size_t half = rotary.inverse_frequencies.size();
  const auto row = [&](int64_t t) {
    std::vector<float> cosines(half), sines(half), query(static_cast<size_t>(d));
    for (size_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(positions[t]) * rotary.inverse_frequencies[j];
      cosines[j] = static_cast<float>(std::cos(angle) * rotary.scale);
      sines[j] = static_cast<float>(std::sin(angle) * rotary.scale);
    }
    for (int h = 0; h < shape.n_heads; ++h) {
      const int64_t head = t * shape.n_heads + h;
      const float* from = query_gate + head * 2 * d;
      std::copy_n(from, d, query.data());
      NormAndRotate(kernels_, query.data(), d, q_norm, eps, cosines, sines, q + head * d);
      std::copy_n(from + d, d, gate + head * d);
    }
    for (int g = 0; g < shape.n_kv_heads; ++g) {
      float* key = k + (t * shape.n_kv_heads + g) * d;
      std::copy_n(key, d, query.data());
      NormAndRotate(kernels_, query.data(), d, k_norm, eps, cosines, sines, key);
    }
  };
  if (n_rows <= 4) {
    for (int t = 0; t < n_rows; ++t) row(t);
  } else {
    parallel_.Each(n_rows, row);
  }
}

void FastOps::StoreKv(const AttentionShape& shape, int n_rows, int64_t first, const float* k,
                      const float* v, const KvPages& pages) {
  exact_.StoreKv(shape, n_rows, first, k, v, pages);
}

// A row's positions are cut into stretches, each summed from its first position on, and the
// stretches' sums are added in order: the same bits whether one thread takes a row or many.
void FastOps::Attention(const AttentionShape& shape, int n_rows, int64_t first, const float* q,
                        const float* gate, const KvPages& pages, float* out) {
  const int d = shape.head_dim, share = shape.n_heads / shape.n_kv_heads;
  if (d % kPart != 0) return exact_.Attention(shape, n_rows, first, q, gate, pages, out);
  const int64_t stride = int64_t{shape.n_kv_heads} * d;
  const float scale = 1 / std::sqrt(static_cast<float>(d));
  const int64_t n_groups = int64_t{n_rows} * shape.n_kv_heads;  // of queries that share keys
  const auto row_of = [&](int64_t group) {
    return AttentionRow{
        .q = q + group * share * d, .n_queries = share, .head_dim = d, .scale = scale};
  };
  const auto end_of = [&](int64_t group) { return first + group / shape.n_kv_heads + 1; };
  const auto attend = [&](int64_t group, int64_t stretch, const Sums& sums) {
    AttendStretch(kernels_, row_of(group), stretch * kStretch,
                  std::min(end_of(group), (stretch + 1) * kStretch), pages, stride,
                  group % shape.n_kv_heads * d, sums);
  };
  const auto add = [&](const Sums& part, const Sums& all) {
    for (int h = 0; h < share; ++h) {
      Merge(kernels_, d, part.largest + h, part.sum + h, part.acc + int64_t{h} * d, all.largest + h,
            all.sum + h, all.acc + int64_t{h} * d);
    }
  };
  const auto finish = [&](int64_t group, const Sums& all) {
    for (int h = 0; h < share; ++h) {
      const int64_t at = (group * share + h) * d;
      kernels_.gate_and_divide(gate + at, all.sum[h], d, out + at);
    }
  };
  const int64_t n_stretches = (first + n_rows + kStretch - 1) / kStretch;
  const bool is_split = n_groups < 2 * parallel_.n_threads() && n_stretches > 1;
  const int64_t n_parts = is_split ? n_groups * n_stretches : 0;
  partial_max_.resize(static_cast<size_t>(n_parts * share));
  partial_sum_.resize(partial_max_.size());
  partial_.resize(partial_max_.size() * static_cast<size_t>(d));
  const auto part_of = [&](int64_t i) {
    return Sums{partial_max_.data() + i * share, partial_sum_.data() + i * share,
                partial_.data() + i * share * d};
  };
  if (is_split) {
    parallel_.Each(n_parts, [&](int64_t i) {
      const int64_t group = i / n_stretches, stretch = i % n_stretches;
      if (stretch * kStretch < end_of(group)) attend(group, stretch, part_of(i));
    });
  }
  const auto one = [&](int64_t group) {
    std::vector<float> memory(static_cast<size_t>(share * (d + 4)));
    const Sums all{memory.data(), memory.data() + share, out + group * share * d};
    const Sums local{memory.data() + 2 * share, memory.data() + 3 * share,
                     memory.data() + 4 * share};
    all.Clear(share, d);
    for (int64_t s = 0; s * kStretch < end_of(group); ++s) {
      if (!is_split) attend(group, s, local);
      add(is_split ? part_of(group * n_stretches + s) : local, all);
    }
    finish(group, all);
  };
  parallel_.Each(n_groups, one);
}

}  // namespace hearth::worker
