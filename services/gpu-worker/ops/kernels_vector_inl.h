// Norms, activations, softmax and the choice of the largest, over the vectors of simd_*.h. Part of
// kernels_inl.h.
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

}  // namespace
}  // namespace hearth::worker::HEARTH_ISA
