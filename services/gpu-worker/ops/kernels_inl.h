// The kernels over the types of simd_avx512.h or simd_avx2.h. Included once by each kernels_*.cc
// after one of these, with HEARTH_ISA naming the namespace. No templates of the standard library
// here: an instance compiled for one CPU could be linked into code for all.
#include <cstdint>

#include "services/gpu-worker/ops/kernels.h"

namespace hearth::worker::HEARTH_ISA {
namespace {

constexpr int kLanes = 16;

// e^x: 2^n e^r with |r| <= ln 2 / 2, e^r by the Taylor polynomial of degree 7 (2 ulp).
inline V Exp(V x) {
  x = Max(Min(x, Set(88.f)), Set(-87.f));
  const V n = Round(x * Set(1.44269504f));
  V r = Fma(n, Set(-0.693145752f), x);
  r = Fma(n, Set(-1.42860677e-6f), r);
  V p = Set(1.f / 5040);
  p = Fma(p, r, Set(1.f / 720));
  p = Fma(p, r, Set(1.f / 120));
  p = Fma(p, r, Set(1.f / 24));
  p = Fma(p, r, Set(1.f / 6));
  p = Fma(p, r, Set(0.5f));
  p = Fma(p, r, Set(1.f));
  p = Fma(p, r, Set(1.f));
  return Scale2(p, n);
}
inline V Sigmoid(V x) { return Set(1) / (Set(1) + Exp(Zero() - x)); }
inline V Silu(V x) { return x * Sigmoid(x); }

// Calls body(i, n) for whole vectors of [0, n), and once for the rest with its length.
template <typename Whole, typename Rest>
inline void ForLanes(int64_t n, const Whole& whole, const Rest& rest) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) whole(i);
  if (i < n) rest(i, n - i);
}

inline float SumOfSquares(const float* x, int64_t n) {
  V sums[4] = {Zero(), Zero(), Zero(), Zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const V v = Load(x + i + j * kLanes);
      sums[j] = Fma(v, v, sums[j]);
    }
  }
  ForLanes(
      n - i,
      [&](int64_t j) {
        const V v = Load(x + i + j);
        sums[0] = Fma(v, v, sums[0]);
      },
      [&](int64_t j, int64_t left) {
        const V v = LoadN(x + i + j, left);
        sums[1] = Fma(v, v, sums[1]);
      });
  return SumAll((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline float SquareRoot(float x) { return __builtin_sqrtf(x); }

void Quantize(const float* x, int64_t n, int row, int n_rows, int8_t* q, BlockScale* scales) {
  for (int64_t b = 0; b < n / kBlock; ++b) {
    V v[4], largest = Zero();
    for (int j = 0; j < 4; ++j) {
      v[j] = Load(x + b * kBlock + j * kLanes);
      largest = Max(largest, Abs(v[j]));
    }
    const float top = MaxAll(largest);
    const float inverse = top > 0 ? 127 / top : 0;
    int8_t* to = q + (b * n_rows + row) * kBlock;
    V sum = Zero();
    for (int j = 0; j < 4; ++j) {
      const V whole = Round(v[j] * Set(inverse));
      sum = sum + whole;
      StoreInt8(whole, to + j * kLanes);
    }
    // Whole numbers far below 2^24: exact.
    scales[b * n_rows + row] = {top / 127, -128 * static_cast<int32_t>(SumAll(sum))};
  }
}

// Stages a block of 64 columns: start from the offset, 16 times 4 columns, then into float with
// the row's and the activations' scales. kSplit independent sums a row hide the latency of the
// products where there are few rows; whole numbers, so that the split changes nothing.
template <int kRows, bool kIs4Bit>
void Strip(const TiledMatrix& matrix, int64_t strip, const RowGroup& rows, float* out,
           int64_t stride) {
  constexpr int kSplit = kRows <= 2 ? 4 : kRows <= 4 ? 2 : 1;
  constexpr int kTileBytes = kIs4Bit ? 512 : 1024;
  // Ahead of the reads by four tiles: with few rows a strip is read once and at memory speed (2 to
  // 10 % on a Zen 5 server; 8 KB ahead are too many).
  constexpr int kAhead = 2048;
  const uint8_t* tile = matrix.data + strip * matrix.n_tiles * kTileBytes;
  const uint16_t* scales = matrix.scales + strip * matrix.n_tiles * kLanes;
  const int8_t* q = rows.q;
  const BlockScale* x_scales = rows.scales;
  const Levels levels(matrix.levels);
  V total[kRows];
  for (int t = 0; t < kRows; ++t) total[t] = Zero();
  for (int64_t b = 0; b < matrix.n_tiles; ++b) {
    Sums sums[kRows][kSplit];
    for (int t = 0; t < kRows; ++t) {
      sums[t][0] = StartSums(x_scales[t].offset);
      for (int s = 1; s < kSplit; ++s) sums[t][s] = ZeroSums();
    }
    if constexpr (kIs4Bit) {
#pragma GCC unroll 8
      for (int c = 0; c < 8; ++c) {
        if constexpr (kRows < kMaxGroup) __builtin_prefetch(tile + kAhead + c * 64);
        const Bytes codes = LoadBytes(tile + c * 64);
        const Bytes low = LowLevels(codes, levels), high = HighLevels(codes, levels);
        for (int t = 0; t < kRows; ++t) {
          Sums& first = sums[t][2 * c % kSplit];
          first = AddProducts(first, low, q + t * kBlock + 4 * c);
          Sums& second = sums[t][(2 * c + 1) % kSplit];
          second = AddProducts(second, high, q + t * kBlock + 32 + 4 * c);
        }
      }
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < 16; ++c) {
        const Bytes weights = FromByteWeights(LoadBytes(tile + c * 64));
        for (int t = 0; t < kRows; ++t) {
          Sums& sum = sums[t][c % kSplit];
          sum = AddProducts(sum, weights, q + t * kBlock + 4 * c);
        }
      }
    }
    const V scale = LoadF16(scales);
    for (int t = 0; t < kRows; ++t) {
      Sums sum = sums[t][0];
      for (int s = 1; s < kSplit; ++s) sum = sum + sums[t][s];
      total[t] = Fma(ToFloat(sum) * Set(x_scales[t].scale), scale, total[t]);
    }
    tile += kTileBytes;
    scales += kLanes;
    q += kRows * kBlock;
    x_scales += kRows;
  }
  for (int t = 0; t < kRows; ++t) Store(total[t] * Set(matrix.factor), out + t * stride);
}

template <bool kIs4Bit>
void AnyStrip(const TiledMatrix& matrix, int64_t strip, const RowGroup& rows, float* out,
              int64_t stride) {
  switch (rows.n_rows) {
    case 1:
      return Strip<1, kIs4Bit>(matrix, strip, rows, out, stride);
    case 2:
      return Strip<2, kIs4Bit>(matrix, strip, rows, out, stride);
    case 3:
      return Strip<3, kIs4Bit>(matrix, strip, rows, out, stride);
    case 4:
      return Strip<4, kIs4Bit>(matrix, strip, rows, out, stride);
    case 5:
      return Strip<5, kIs4Bit>(matrix, strip, rows, out, stride);
    case 6:
      return Strip<6, kIs4Bit>(matrix, strip, rows, out, stride);
    case 7:
      return Strip<7, kIs4Bit>(matrix, strip, rows, out, stride);
    default:
      return Strip<8, kIs4Bit>(matrix, strip, rows, out, stride);
  }
}

inline V LoadWeights(const float* p) { return Load(p); }
struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};
inline V LoadWeights(const F16* p) { return LoadF16(&p->bits); }
inline V LoadWeights(const BF16* p) { return LoadBf16(&p->bits); }

// kOut weight rows times kRows activation rows: each output has one vector of sums, whatever kOut
// and kRows are.
template <int kOut, int kRows, typename T>
inline void PlainTile(const T* weights, int64_t n, const float* x, int64_t x_stride, float* y,
                      int64_t y_stride) {
  V sums[kOut][kRows];
  for (int r = 0; r < kOut; ++r) {
    for (int t = 0; t < kRows; ++t) sums[r][t] = Zero();
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    V v[kRows];
    for (int t = 0; t < kRows; ++t) v[t] = Load(x + t * x_stride + i);
    for (int r = 0; r < kOut; ++r) {
      const V w = LoadWeights(weights + r * n + i);
      for (int t = 0; t < kRows; ++t) sums[r][t] = Fma(w, v[t], sums[r][t]);
    }
  }
  if (i < n) {
    for (int r = 0; r < kOut; ++r) {
      T rest[kLanes] = {};
      __builtin_memcpy(rest, weights + r * n + i, static_cast<size_t>(n - i) * sizeof(T));
      const V w = LoadWeights(rest);
      for (int t = 0; t < kRows; ++t) {
        sums[r][t] = Fma(w, LoadN(x + t * x_stride + i, n - i), sums[r][t]);
      }
    }
  }
  for (int r = 0; r < kOut; ++r) {
    for (int t = 0; t < kRows; ++t) y[t * y_stride + r] = SumAll(sums[r][t]);
  }
}

template <int kOut, typename T>
void PlainRows(const T* weights, int64_t n, const float* x, int64_t x_stride, int n_rows, float* y,
               int64_t y_stride) {
  int t = 0;
  for (; t + 4 <= n_rows; t += 4) {
    PlainTile<kOut, 4>(weights, n, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
  }
  for (; t < n_rows; ++t) {
    PlainTile<kOut, 1>(weights, n, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
  }
}

template <typename T>
void Plain(const void* data, int64_t n, int n_out, const float* x, int64_t x_stride, int n_rows,
           float* y, int64_t y_stride) {
  const T* weights = static_cast<const T*>(data);
  int r = 0;
  for (; r + 4 <= n_out; r += 4) {
    PlainRows<4>(weights + r * n, n, x, x_stride, n_rows, y + r, y_stride);
  }
  for (; r < n_out; ++r) {
    PlainRows<1>(weights + r * n, n, x, x_stride, n_rows, y + r, y_stride);
  }
}

void AddScaled(float a, const float* x, int64_t n, float* y) {
  const V factor = Set(a);
  ForLanes(
      n, [&](int64_t i) { Store(Fma(factor, Load(x + i), Load(y + i)), y + i); },
      [&](int64_t i, int64_t left) {
        StoreN(Fma(factor, LoadN(x + i, left), LoadN(y + i, left)), y + i, left);
      });
}

void AddRmsNorm(float* x, const float* delta, const float* weight, float eps, int64_t n, float* h) {
  if (delta != nullptr) AddScaled(1, delta, n, x);
  const float mean = SumOfSquares(x, n) / static_cast<float>(n);
  const V scale = Set(1 / SquareRoot(mean + eps));
  ForLanes(
      n, [&](int64_t i) { Store(Load(x + i) * scale * (Set(1) + Load(weight + i)), h + i); },
      [&](int64_t i, int64_t left) {
        StoreN(LoadN(x + i, left) * scale * (Set(1) + LoadN(weight + i, left)), h + i, left);
      });
}

void SiluMul(const float* gate, const float* up, int64_t n, float* out) {
  ForLanes(
      n, [&](int64_t i) { Store(Silu(Load(gate + i)) * Load(up + i), out + i); },
      [&](int64_t i, int64_t left) {
        StoreN(Silu(LoadN(gate + i, left)) * LoadN(up + i, left), out + i, left);
      });
}

void GateAndDivide(const float* gate, float sum, int64_t n, float* y) {
  const V inverse = Set(1 / sum);
  ForLanes(
      n, [&](int64_t i) { Store(Load(y + i) * inverse * Sigmoid(Load(gate + i)), y + i); },
      [&](int64_t i, int64_t left) {
        StoreN(LoadN(y + i, left) * inverse * Sigmoid(LoadN(gate + i, left)), y + i, left);
      });
}

void Convolve(const float* const* rows, const float* kernel, int64_t stride, int width, int64_t n,
              float* out) {
  ForLanes(
      n,
      [&](int64_t i) {
        V sum = Zero();
        for (int w = 0; w < width; ++w) {
          sum = Fma(Load(kernel + w * stride + i), Load(rows[w] + i), sum);
        }
        Store(Silu(sum), out + i);
      },
      [&](int64_t i, int64_t left) {
        V sum = Zero();
        for (int w = 0; w < width; ++w) {
          sum = Fma(LoadN(kernel + w * stride + i, left), LoadN(rows[w] + i, left), sum);
        }
        StoreN(Silu(sum), out + i, left);
      });
}

void L2Normalize(const float* from, int64_t n, float eps, float scale, float* to) {
  const V factor = Set(scale / SquareRoot(SumOfSquares(from, n) + eps));
  ForLanes(
      n, [&](int64_t i) { Store(Load(from + i) * factor, to + i); },
      [&](int64_t i, int64_t left) { StoreN(LoadN(from + i, left) * factor, to + i, left); });
}

void GatedNorm(const float* norm, const float* z, float eps, int64_t n, float* out) {
  const float mean = SumOfSquares(out, n) / static_cast<float>(n);
  const V scale = Set(1 / SquareRoot(mean + eps));
  ForLanes(
      n,
      [&](int64_t i) {
        Store(Load(norm + i) * (Load(out + i) * scale) * Silu(Load(z + i)), out + i);
      },
      [&](int64_t i, int64_t left) {
        StoreN(LoadN(norm + i, left) * (LoadN(out + i, left) * scale) * Silu(LoadN(z + i, left)),
               out + i, left);
      });
}

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

// Blocks of 16 with the largest of each: a pick looks at the blocks' largest, then into one block.
// NaNs count as the lowest number, what was picked as less than that.
void TopK(const float* x, int64_t n, int k, float* scratch, int32_t* ids) {
  const int64_t n_blocks = (n + kLanes - 1) / kLanes;
  const float taken = -__builtin_inff();
  const V lowest = Set(-3.4e38f);
  float* largest = scratch + n_blocks * kLanes;
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t left = n - b * kLanes;
    const V v = left >= kLanes
                    ? Max(Load(x + b * kLanes), lowest)
                    : KeepFirst(Max(LoadN(x + b * kLanes, left), lowest), left, Set(taken));
    Store(v, scratch + b * kLanes);
    largest[b] = MaxAll(v);
  }
  for (int i = 0; i < k; ++i) {
    int64_t best = 0;
    for (int64_t b = 1; b < n_blocks; ++b) {
      if (largest[b] > largest[best]) best = b;  // the first of equal ones
    }
    float* block = scratch + best * kLanes;
    int lane = 0;
    while (lane < kLanes - 1 && block[lane] != largest[best]) ++lane;
    ids[i] = static_cast<int32_t>(best * kLanes + lane);
    block[lane] = taken;
    largest[best] = MaxAll(Load(block));
  }
}

float SoftmaxTerms(const float* logits, int64_t n, float* largest, float* terms) {
  const V lowest = Set(-3.4e38f);
  V top = lowest;
  ForLanes(
      n, [&](int64_t i) { top = Max(top, Load(logits + i)); },
      [&](int64_t i, int64_t left) {
        top = Max(top, KeepFirst(LoadN(logits + i, left), left, lowest));
      });
  *largest = MaxAll(top);
  const V shift = Set(*largest);
  V sum = Zero();
  ForLanes(
      n,
      [&](int64_t i) {
        const V term = Exp(Load(logits + i) - shift);
        Store(term, terms + i);
        sum = sum + term;
      },
      [&](int64_t i, int64_t left) {
        const V term = KeepFirst(Exp(LoadN(logits + i, left) - shift), left, Zero());
        StoreN(term, terms + i, left);
        sum = sum + term;
      });
  return SumAll(sum);
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

constexpr Kernels MakeKernels(std::string_view name) {
  return {.name = name,
          .quantize = Quantize,
          .tiled4 = AnyStrip<true>,
          .tiled8 = AnyStrip<false>,
          .plain_f32 = Plain<float>,
          .plain_f16 = Plain<F16>,
          .plain_bf16 = Plain<BF16>,
          .add_rms_norm = AddRmsNorm,
          .silu_mul = SiluMul,
          .add_scaled = AddScaled,
          .gate_and_divide = GateAndDivide,
          .convolve = Convolve,
          .l2_normalize = L2Normalize,
          .delta_rule = DeltaRule,
          .gated_norm = GatedNorm,
          .top_k = TopK,
          .softmax_terms = SoftmaxTerms,
          .attend_page = AttendPage};
}

}  // namespace
}  // namespace hearth::worker::HEARTH_ISA
