// What runs along a sequence: the gated delta rule, and attention over pages of keys and values.
// Part of kernels_inl.h.
#include <cstdint>

#include "services/gpu-worker/ops/kernels.h"

namespace hearth::worker::HEARTH_ISA {
namespace {

// One token: seen = k^T S, S = decay S + k (beta (v - decay seen)), out = q^T S. Four partial sums
// a column hide the latency of their additions.
template <int kVectors>
inline void DeltaToken(int dk, const float* q, const float* k, const float* v, float decay,
                       float beta, float* state, int64_t stride, float* out) {
  constexpr int kParts = 4;
  V seen[kParts][kVectors], sums[kParts][kVectors], change[kVectors];
  for (int p = 0; p < kParts; ++p) {
    for (int c = 0; c < kVectors; ++c) seen[p][c] = sums[p][c] = Zero();
  }
  for (int i = 0; i < dk; i += kParts) {
    for (int p = 0; p < kParts; ++p) {
      const V key = Set(k[i + p]);
      for (int c = 0; c < kVectors; ++c) {
        seen[p][c] = Fma(key, Load(state + (i + p) * stride + c * kLanes), seen[p][c]);
      }
    }
  }
  for (int c = 0; c < kVectors; ++c) {
    const V all = (seen[0][c] + seen[1][c]) + (seen[2][c] + seen[3][c]);
    change[c] = Set(beta) * (Load(v + c * kLanes) - Set(decay) * all);
  }
  const V keep = Set(decay);
  for (int i = 0; i < dk; i += kParts) {
    for (int p = 0; p < kParts; ++p) {
      const V key = Set(k[i + p]), query = Set(q[i + p]);
      for (int c = 0; c < kVectors; ++c) {
        float* at = state + (i + p) * stride + c * kLanes;
        const V next = Fma(key, change[c], keep * Load(at));
        Store(next, at);
        sums[p][c] = Fma(query, next, sums[p][c]);
      }
    }
  }
  for (int c = 0; c < kVectors; ++c) {
    Store((sums[0][c] + sums[1][c]) + (sums[2][c] + sums[3][c]), out + c * kLanes);
  }
}

template <int kVectors>
void DeltaRows(const Kernels::DeltaArgs& a) {
  for (int t = 0; t < a.n_rows; ++t) {
    DeltaToken<kVectors>(a.dk, a.q + t * a.qk_stride, a.k + t * a.qk_stride, a.v + t * a.v_stride,
                         a.decay[t * a.gate_stride], a.beta[t * a.gate_stride], a.state,
                         a.state_stride, a.out + t * a.out_stride);
  }
}

void DeltaRule(const Kernels::DeltaArgs& args) {
  if (args.n_columns == 2 * kLanes) {
    DeltaRows<2>(args);
  } else {
    DeltaRows<1>(args);
  }
}

// Scores of kQueries queries with up to 16 keys, lane p for key p; head_dim is a multiple of 16.
// Four keys at a time, so that a loaded key meets every query and a loaded query every key.
template <int kQueries>
inline void Scores(const float* q, int head_dim, int n, const float* keys, int64_t stride,
                   V* scores) {
  V sums[kQueries][kLanes];
  for (int p = 0; p < kLanes; p += 4) {
    // Lanes beyond n repeat the last key, and are dropped by the caller.
    const float* key[4];
    for (int j = 0; j < 4; ++j) key[j] = keys + (p + j < n ? p + j : n - 1) * stride;
    V four[kQueries][4];
    for (int h = 0; h < kQueries; ++h) {
      for (int j = 0; j < 4; ++j) four[h][j] = Zero();
    }
    for (int i = 0; i < head_dim; i += kLanes) {
      V k[4];
      for (int j = 0; j < 4; ++j) k[j] = Load(key[j] + i);
      for (int h = 0; h < kQueries; ++h) {
        const V v = Load(q + int64_t{h} * head_dim + i);
        for (int j = 0; j < 4; ++j) four[h][j] = Fma(v, k[j], four[h][j]);
      }
    }
    for (int h = 0; h < kQueries; ++h) {
      for (int j = 0; j < 4; ++j) sums[h][p + j] = four[h][j];
    }
  }
  for (int h = 0; h < kQueries; ++h) scores[h] = SumEach(sums[h]);
}

// acc += weights[p] values[p], kDims vectors of kQueries queries at a time.
template <int kQueries, int kDims>
inline void AddValues(int n, const float* weights, const float* values, int64_t stride,
                      int64_t acc_stride, float* acc) {
  V sums[kQueries][kDims];
  for (int h = 0; h < kQueries; ++h) {
    for (int d = 0; d < kDims; ++d) sums[h][d] = Load(acc + h * acc_stride + d * kLanes);
  }
  for (int p = 0; p < n; ++p) {
    V v[kDims];
    for (int d = 0; d < kDims; ++d) v[d] = Load(values + p * stride + d * kLanes);
    for (int h = 0; h < kQueries; ++h) {
      const V w = Set(weights[h * kLanes + p]);
      for (int d = 0; d < kDims; ++d) sums[h][d] = Fma(w, v[d], sums[h][d]);
    }
  }
  for (int h = 0; h < kQueries; ++h) {
    for (int d = 0; d < kDims; ++d) Store(sums[h][d], acc + h * acc_stride + d * kLanes);
  }
}

// As many sums as registers hold: kSumRegisters, said by the types.
template <int kQueries>
void AttendQueries(const AttentionRow& row, int first, int n, const float* keys,
                   const float* values, int64_t stride, float* largest, float* sum, float* acc) {
  constexpr int kDims = kQueries * 4 <= kSumRegisters ? 4 : kQueries * 2 <= kSumRegisters ? 2 : 1;
  const int d = row.head_dim;
  const V lowest = Set(-3.4e38f);
  float weights[kQueries * kLanes];
  V all_scores[kQueries];
  Scores<kQueries>(row.q + int64_t{first} * d, d, n, keys, stride, all_scores);
  for (int h = 0; h < kQueries; ++h) {
    const V scores = KeepFirst(all_scores[h] * Set(row.scale), n, lowest);
    float* at = largest + first + h;
    const float top = MaxAll(scores);
    if (top > *at) {
      const V shrink = Exp(Set(*at - top));  // nearly 0 for the first page, times sums of 0
      sum[first + h] *= SumAll(shrink) / kLanes;
      float* to = acc + int64_t{first + h} * d;
      for (int i = 0; i < d; i += kLanes) Store(Load(to + i) * shrink, to + i);
      *at = top;
    }
    const V terms = KeepFirst(Exp(scores - Set(*at)), n, Zero());
    sum[first + h] += SumAll(terms);
    Store(terms, weights + h * kLanes);
  }
  float* to = acc + int64_t{first} * d;
  int i = 0;
  for (; i + kDims * kLanes <= d; i += kDims * kLanes) {
    AddValues<kQueries, kDims>(n, weights, values + i, stride, d, to + i);
  }
  for (; i < d; i += kLanes) AddValues<kQueries, 1>(n, weights, values + i, stride, d, to + i);
}

void AttendPage(const AttentionRow& row, int n, const float* keys, const float* values,
                int64_t stride, float* largest, float* sum, float* acc) {
  int h = 0;
  for (; h + 4 <= row.n_queries; h += 4) {
    AttendQueries<4>(row, h, n, keys, values, stride, largest, sum, acc);
  }
  for (; h < row.n_queries; ++h) {
    AttendQueries<1>(row, h, n, keys, values, stride, largest, sum, acc);
  }
}

}  // namespace
}  // namespace hearth::worker::HEARTH_ISA
