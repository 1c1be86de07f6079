// Every kernel of every instruction set that this CPU has, against sums in double over awkward
// shapes.
#include "services/gpu-worker/ops/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/quantized_rows.h"

namespace hearth::worker {
namespace {

using Floats = std::vector<float>;

Floats Random(int64_t n, uint32_t seed, float size = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, size);
  Floats values(static_cast<size_t>(n));
  for (float& value : values) value = normal(random);
  return values;
}

class KernelsTest : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& k_ = *GetParam();
};

// A random matrix in tiles, with memory of its own.
struct Matrix {
  Matrix(WeightKind kind, int64_t out, int64_t in, uint32_t seed) : ref{.kind = kind} {
    ref.out = out, ref.in = in, ref.levels = kNf4Levels;
    const LinearBytes bytes = BytesOf(ref);
    std::mt19937 random(seed);
    data.resize(bytes.data);
    for (auto& byte : data) byte = static_cast<uint8_t>(random());
    // 8-bit weights are never -128 (a shifted 0).
    if (kind == WeightKind::kTiled8) std::ranges::replace(data, uint8_t{0}, uint8_t{1});
    scales.resize(bytes.absmax / 2);
    for (auto& scale : scales) scale = F32ToF16(static_cast<float>(random() % 1000) / 1000);
    ref.data = data.data(), ref.scales = scales.data(), ref.factor = 0.25f;
  }
  Matrix(const Matrix&) = delete;
  TiledMatrix ForKernels() const {
    TiledMatrix matrix{.data = data.data(),
                       .scales = scales.data(),
                       .n_tiles = ref.in / kTileColumns,
                       .levels = {},
                       .factor = ref.factor};
    if (ref.kind != WeightKind::kTiled4) return matrix;
    const IntegerLevels levels = RoundLevels(ref.levels);
    for (size_t i = 0; i < 16; ++i)
      matrix.levels[i] = static_cast<uint8_t>(128 + levels.integers[i]);
    matrix.factor /= levels.scale;
    return matrix;
  }
  // The matrix as the kernels mean it: its levels rounded to integers.
  Floats Row(int64_t row) const {
    LinearRef rounded = ref;
    const IntegerLevels levels = RoundLevels(ref.levels);
    for (size_t i = 0; i < 16; ++i) {
      rounded.levels[i] = static_cast<float>(levels.integers[i]) / levels.scale;
    }
    Floats values(static_cast<size_t>(ref.in));
    DequantizeRow(rounded, row, values);
    return values;
  }
  LinearRef ref;
  std::vector<uint8_t> data;
  std::vector<uint16_t> scales;
};

TEST_P(KernelsTest, QuantizedRowsAreWithinHalfAStepAndKnowTheirSums) {
  constexpr int kWidth = 192, kRows = 3;
  QuantizedRows rows;
  rows.Reshape(kRows, kWidth, kMaxGroup);
  Floats x = Random(kRows * kWidth, 1, 3);
  std::fill_n(x.begin() + kWidth, 64, 0.f);  // a block of zeros
  x[5] = 1e30f;                              // beside it everything else is rounded to zero
  for (int t = 0; t < kRows; ++t) {
    k_.quantize(x.data() + t * kWidth, kWidth, t, kRows, rows.q(0), rows.scales(0));
  }
  const RowGroup group = rows.Group(0, kRows);
  for (int b = 0; b < kWidth / kBlock; ++b) {
    for (int t = 0; t < kRows; ++t) {
      const BlockScale scale = group.scales[b * kRows + t];
      const int8_t* q = group.q + (b * kRows + t) * kBlock;
      int sum = 0;
      for (int i = 0; i < kBlock; ++i) {
        const float want = x[static_cast<size_t>(t * kWidth + b * kBlock + i)];
        EXPECT_NEAR(static_cast<float>(q[i]) * scale.scale, want, scale.scale * 0.501);
        EXPECT_GE(q[i], -127);
        sum += q[i];
      }
      EXPECT_EQ(scale.offset, -128 * sum);
    }
  }
}

TEST_P(KernelsTest, TiledProductsAreExactButForTheFloatSums) {
  for (const WeightKind kind : {WeightKind::kTiled4, WeightKind::kTiled8}) {
    for (const int64_t in : {64, 128, 192, 1024}) {
      const Matrix matrix(kind, 33, in, static_cast<uint32_t>(in));
      for (int n = 1; n <= kMaxGroup; ++n) {
        QuantizedRows rows;
        rows.Reshape(n, in, kMaxGroup);
        const Floats x = Random(n * in, static_cast<uint32_t>(n));
        for (int t = 0; t < n; ++t) {
          k_.quantize(x.data() + t * in, in, t, n, rows.q(0), rows.scales(0));
        }
        const RowGroup group = rows.Group(0, n);
        Floats out(static_cast<size_t>(n * 48), NAN);
        const auto kernel = kind == WeightKind::kTiled4 ? k_.tiled4 : k_.tiled8;
        for (int64_t strip = 0; strip < TileStrips(matrix.ref); ++strip) {
          kernel(matrix.ForKernels(), strip, group, out.data() + strip * kTileRows, 48);
        }
        for (int64_t r = 0; r < matrix.ref.out; ++r) {
          const Floats row = matrix.Row(r);
          for (int t = 0; t < n; ++t) {
            double want = 0, size = 0;
            for (int64_t i = 0; i < in; ++i) {
              const int64_t block = i / kBlock * n + t;
              const double product = double{row[static_cast<size_t>(i)]} *
                                     group.q[block * kBlock + i % kBlock] *
                                     group.scales[block].scale;
              want += product, size += std::abs(product);
            }
            ASSERT_NEAR(out[static_cast<size_t>(t * 48 + r)], want, 1e-6 * size + 1e-9)
                << "row " << r << ", " << n << " rows of " << in;
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, ARowsProductsDoNotDependOnItsGroup) {
  constexpr int64_t kIn = 512;
  const Matrix matrix(WeightKind::kTiled4, 16, kIn, 3);
  const Floats x = Random(kMaxGroup * kIn, 4);
  const auto run = [&](int first, int n) {
    QuantizedRows rows;
    rows.Reshape(n, kIn, kMaxGroup);
    for (int t = 0; t < n; ++t) {
      k_.quantize(x.data() + (first + t) * kIn, kIn, t, n, rows.q(0), rows.scales(0));
    }
    Floats out(static_cast<size_t>(n * 16));
    k_.tiled4(matrix.ForKernels(), 0, rows.Group(0, n), out.data(), 16);
    return out;
  };
  for (int n = 1; n <= kMaxGroup; ++n) {
    const Floats together = run(0, n), last = run(n - 1, 1);
    EXPECT_TRUE(std::equal(last.begin(), last.end(), together.end() - 16)) << n;
  }
}

TEST_P(KernelsTest, PlainProductsAgreeWithSumsInDouble) {
  for (const int64_t n : {1, 15, 16, 17, 31, 33, 100, 256}) {
    for (const int n_out : {1, 3, 4, 5, 9}) {
      for (const int n_rows : {1, 2, 4, 5, 9}) {
        const Floats weights = Random(n * n_out, 1), x = Random(n * n_rows, 2);
        std::vector<uint16_t> f16, bf16;
        for (const float w : weights) f16.push_back(F32ToF16(w)), bf16.push_back(F32ToBF16(w));
        const auto check = [&](Kernels::Plain plain, const void* data, auto weight) {
          Floats y(static_cast<size_t>(n_out * n_rows), NAN);
          plain(data, n, n_out, x.data(), n, n_rows, y.data(), n_out);
          for (int t = 0; t < n_rows; ++t) {
            for (int r = 0; r < n_out; ++r) {
              double want = 0, size = 0;
              for (int64_t i = 0; i < n; ++i) {
                const double product = double{weight(static_cast<size_t>(r * n + i))} *
                                       x[static_cast<size_t>(t * n + i)];
                want += product, size += std::abs(product);
              }
              ASSERT_NEAR(y[static_cast<size_t>(t * n_out + r)], want, 2e-6 * size) << n;
            }
          }
        };
        check(k_.plain_f32, weights.data(), [&](size_t i) { return weights[i]; });
        check(k_.plain_f16, f16.data(), [&](size_t i) { return F16ToF32(f16[i]); });
        check(k_.plain_bf16, bf16.data(), [&](size_t i) { return BF16ToF32(bf16[i]); });
      }
    }
  }
}

TEST_P(KernelsTest, VectorOpsAgreeWithTheirFormulas) {
  for (const int64_t n : {1, 7, 16, 17, 63, 64, 65, 200}) {
    const auto size = static_cast<size_t>(n);
    const Floats a = Random(n, 1, 4), b = Random(n, 2), w = Random(n, 3);
    Floats out(size + 1, 99), x = a, delta = b;
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };

    k_.silu_mul(a.data(), b.data(), n, out.data());
    for (size_t i = 0; i < size; ++i) EXPECT_NEAR(out[i], a[i] * sigmoid(a[i]) * b[i], 1e-5);
    EXPECT_EQ(out[size], 99) << "wrote beyond its end";

    k_.add_rms_norm(x.data(), delta.data(), w.data(), 1e-6f, n, out.data());
    double mean = 0;
    for (size_t i = 0; i < size; ++i) mean += std::pow(double{a[i]} + b[i], 2) / double(n);
    for (size_t i = 0; i < size; ++i) {
      EXPECT_NEAR(out[i], (a[i] + b[i]) / std::sqrt(mean + 1e-6) * (1 + w[i]), 1e-5);
    }
    EXPECT_EQ(out[size], 99);

    Floats y = b;
    k_.gate_and_divide(a.data(), 3, n, y.data());
    for (size_t i = 0; i < size; ++i) EXPECT_NEAR(y[i], b[i] / 3 * sigmoid(a[i]), 1e-6);

    k_.l2_normalize(a.data(), n, 1e-6f, 0.5f, out.data());
    double squares = 1e-6;
    for (const float v : a) squares += double{v} * v;
    for (size_t i = 0; i < size; ++i) EXPECT_NEAR(out[i], a[i] / std::sqrt(squares) / 2, 1e-6);

    y = b;
    k_.gated_norm(w.data(), a.data(), 1e-6f, n, y.data());
    double square_mean = 0;
    for (const float v : b) square_mean += double{v} * v / double(n);
    for (size_t i = 0; i < size; ++i) {
      EXPECT_NEAR(y[i], w[i] * b[i] / std::sqrt(square_mean + 1e-6) * a[i] * sigmoid(a[i]), 1e-4);
    }

    float largest = 0;
    const float sum = k_.softmax_terms(a.data(), n, &largest, out.data());
    EXPECT_EQ(largest, *std::ranges::max_element(a));
    double want = 0;
    for (size_t i = 0; i < size; ++i) {
      EXPECT_NEAR(out[i], std::exp(a[i] - largest), 1e-6);
      want += std::exp(a[i] - largest);
    }
    EXPECT_NEAR(sum, want, 1e-5 * want);
  }
}

TEST_P(KernelsTest, ExtremeGatesGiveLimitsNotNans) {
  const Floats gate = {-1e30f, -200, -100, 0, 100, 200, 1e30f}, up(gate.size(), 1);
  Floats out(gate.size());
  k_.silu_mul(gate.data(), up.data(), static_cast<int64_t>(gate.size()), out.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    EXPECT_TRUE(std::isfinite(out[i])) << gate[i];
    if (gate[i] > -1e10f) {
      EXPECT_NEAR(out[i], std::max(gate[i], 0.f), 1e-5 * std::abs(gate[i]));
    }
  }
}

TEST_P(KernelsTest, ConvolutionIsSiluOfTheWeightedRows) {
  constexpr int64_t kChannels = 37;
  const Floats kernel = Random(4 * kChannels, 1), input = Random(4 * kChannels, 2);
  const float* rows[4];
  for (int w = 0; w < 4; ++w) rows[w] = input.data() + w * kChannels;
  Floats out(kChannels);
  k_.convolve(rows, kernel.data(), kChannels, 4, kChannels, out.data());
  for (size_t c = 0; c < out.size(); ++c) {
    double sum = 0;
    for (size_t w = 0; w < 4; ++w) sum += double{kernel[w * 37 + c]} * input[w * 37 + c];
    EXPECT_NEAR(out[c], sum / (1 + std::exp(-sum)), 1e-5);
  }
}

TEST_P(KernelsTest, TopKTakesTheLargestAndOfEqualOnesTheFirst) {
  for (const int n : {1, 2, 15, 16, 17, 32, 100, 512}) {
    std::mt19937 random(static_cast<uint32_t>(n));
    Floats x(static_cast<size_t>(n));
    for (float& value : x) value = static_cast<float>(random() % 20) - 10;  // many ties
    std::vector<int32_t> want(x.size());
    for (size_t i = 0; i < want.size(); ++i) want[i] = static_cast<int32_t>(i);
    std::ranges::stable_sort(want, [&](int32_t a, int32_t b) {
      return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
    });
    const int k = std::min(n, 10);
    want.resize(static_cast<size_t>(k));
    Floats scratch(static_cast<size_t>((n + 15) / 16 * 17));
    std::vector<int32_t> ids(static_cast<size_t>(k));
    k_.top_k(x.data(), n, k, scratch.data(), ids.data());
    EXPECT_EQ(ids, want) << n;
  }
}

TEST_P(KernelsTest, TopKOfNansGivesDifferentIdsInRange) {
  const Floats x(20, std::numeric_limits<float>::quiet_NaN());
  Floats scratch(34);
  std::vector<int32_t> ids(4);
  k_.top_k(x.data(), 20, 4, scratch.data(), ids.data());
  std::ranges::sort(ids);
  EXPECT_TRUE(std::ranges::adjacent_find(ids) == ids.end());
  EXPECT_TRUE(ids.front() >= 0 && ids.back() < 20);
}

INSTANTIATE_TEST_SUITE_P(Usable, KernelsTest, ::testing::ValuesIn(UsableKernels()),
                         [](const auto& param) { return std::string(param.param->name); });

}  // namespace
}  // namespace hearth::worker
