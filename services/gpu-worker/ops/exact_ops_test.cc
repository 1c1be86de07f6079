#include "services/gpu-worker/ops/exact_ops.h"

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "common/testing/compare.h"
#include "services/gpu-worker/ops/vector_math.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using ::hearth::testing::DotTolerance;
using Floats = std::vector<float>;

Floats Random(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Floats values(static_cast<size_t>(n));
  for (float& value : values) value = normal(random);
  return values;
}

LinearRef F32(const Floats& values, int64_t out, int64_t in) {
  return {.kind = WeightKind::kF32, .out = out, .in = in, .data = values.data()};
}

class ExactOpsTest : public ::testing::Test {
 protected:
  Parallel parallel_{3};
  ExactOps ops_{&parallel_};
};

TEST(VectorMath, DotAgreesWithADoubleSumAtEveryLength) {
  for (const int n : {0, 1, 31, 63, 64, 65, 127, 128, 1000}) {
    const Floats a = Random(n, 1), b = Random(n, 2);
    const double want = std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
    EXPECT_NEAR(Dot(a.data(), b.data(), n), want, DotTolerance(n + 1, 0, 1).abs) << n;
  }
}

TEST(VectorMath, FastRowsAreTheSameBitsAsPlainOnes) {
  std::mt19937 random(7);
  for (const auto& [out, in] : {std::pair{3, 64}, {5, 128}, {7, 33}, {2, 96}}) {
    std::vector<uint8_t> codes(static_cast<size_t>(out * in / 2 + 1));
    for (auto& code : codes) code = static_cast<uint8_t>(random());
    const Floats absmax = Random(out * in / 64 + 1, 3);
    const LinearRef weights{.kind = WeightKind::kBlock4,
                            .out = out,
                            .in = in,
                            .data = codes.data(),
                            .absmax = absmax.data(),
                            .block_size = 64,
                            .levels = kNf4Levels};
    Floats plain(static_cast<size_t>(in)), fast(static_cast<size_t>(in));
    for (int r = 0; r < out; ++r) {
      DequantizeRow(weights, r, plain);
      DequantizeRowFast(weights, r, fast.data());
      EXPECT_EQ(plain, fast) << out << " x " << in << " row " << r;
    }
  }
}

TEST_F(ExactOpsTest, AddRmsNormByHand) {
  Floats x = {1, 2, 3, 4}, h(4);
  const Floats delta = {2, -1, 0, 1}, weight = {0, 0.5f, -1, 1};
  ops_.AddRmsNorm(1, 4, x.data(), delta.data(), weight.data(), 0, h.data());
  const float rms = std::sqrt((9.f + 1 + 9 + 25) / 4);
  EXPECT_TRUE(AllClose(x, Floats{3, 1, 3, 5}, {.abs = 1e-6}));
  EXPECT_TRUE(AllClose(h, Floats{3 / rms, 1.5f / rms, 0, 10 / rms}, {.abs = 1e-6}));
}

TEST_F(ExactOpsTest, LinearAgreesWithADoubleProduct) {
  for (const auto& [rows, out, in] :
       {std::tuple{1, 1, 1}, {2, 31, 33}, {5, 32, 64}, {17, 100, 129}}) {
    const Floats w = Random(out * in, 1), x = Random(rows * in, 2);
    Floats y(static_cast<size_t>(rows * out)), want;
    ops_.Linear(F32(w, out, in), rows, x.data(), y.data());
    for (int t = 0; t < rows; ++t) {
      for (int r = 0; r < out; ++r) {
        double sum = 0;
        for (int i = 0; i < in; ++i) sum += static_cast<double>(w[r * in + i]) * x[t * in + i];
        want.push_back(static_cast<float>(sum));
      }
    }
    EXPECT_TRUE(AllClose(y, want, DotTolerance(in, 0, 1)));
  }
}

TEST_F(ExactOpsTest, RouterTiesGoToTheLowerIndexAndWeightsSumToOne) {
  const Floats logits = {1, 3, 3, 0, 2, 3};
  RouterChoice choice;
  ops_.Route(1, 6, 4, true, logits.data(), &choice);
  EXPECT_EQ(choice.ids, (std::vector<int32_t>{1, 2, 5, 4}));
  EXPECT_NEAR(std::accumulate(choice.weights.begin(), choice.weights.end(), 0.0), 1, 1e-6);
  EXPECT_EQ(choice.weights[0], choice.weights[2]);

  ops_.Route(1, 6, 2, false, logits.data(), &choice);
  const double total = std::exp(1) + 3 * std::exp(3) + 1 + std::exp(2);
  EXPECT_NEAR(choice.weights[0], std::exp(3) / total, 1e-6);
}

TEST_F(ExactOpsTest, ConvolutionRemembersItsHistoryAcrossCalls) {
  constexpr int kChannels = 5, kWidth = 4, kRows = 9;
  const Floats kernel = Random(kWidth * kChannels, 1), input = Random(kRows * kChannels, 2);
  Floats want;
  for (int t = 0; t < kRows; ++t) {
    for (int c = 0; c < kChannels; ++c) {
      double sum = 0;
      for (int w = 0; w < kWidth; ++w) {
        const int from = t - kWidth + 1 + w;
        if (from >= 0)
          sum += static_cast<double>(kernel[w * kChannels + c]) * input[from * kChannels + c];
      }
      want.push_back(static_cast<float>(sum / (1 + std::exp(-sum))));
    }
  }
  for (const int chunk : {1, 2, 3, 9}) {
    Floats history((kWidth - 1) * kChannels, 0.f), out(want.size());
    for (int t = 0; t < kRows; t += chunk) {
      const int n = std::min(chunk, kRows - t);
      ops_.Convolve(n, kChannels, kWidth, kernel.data(), input.data() + t * kChannels,
                    history.data(), out.data() + t * kChannels);
    }
    EXPECT_TRUE(AllClose(out, want, {.abs = 1e-5})) << "chunks of " << chunk;
    EXPECT_TRUE(std::equal(history.begin(), history.end(), input.end() - 3 * kChannels));
  }
}

// Keys and values of `n` positions in pages with room for `page_tokens`.
struct Pages {
  Pages(int n, int tokens_a_page, int row) : page_tokens(tokens_a_page) {
    memory.resize(static_cast<size_t>(2 * (n / page_tokens + 1) * page_tokens * row));
    for (int i = 0; i <= n / page_tokens; ++i) {
      keys.push_back(memory.data() + 2 * i * page_tokens * row);
      values.push_back(keys.back() + page_tokens * row);
    }
  }
  KvPages view() { return {keys, values, page_tokens}; }
  Floats memory;
  std::vector<float*> keys, values;
  int page_tokens;
};

TEST_F(ExactOpsTest, AttentionAgreesWithPlainSoftmaxAcrossPageBoundaries) {
  const AttentionShape shape{.n_heads = 4, .n_kv_heads = 2, .head_dim = 8};
  for (const int n : {1, 15, 16, 17, 33}) {
    const Floats q = Random(n * 32, 1), k = Random(n * 16, 2), v = Random(n * 16, 3);
    const Floats gate = Random(n * 32, 4);
    Pages pages(n, 16, 16);
    Floats out(q.size()), want(q.size());
    ops_.StoreKv(shape, n, 0, k.data(), v.data(), pages.view());
    ops_.Attention(shape, n, 0, q.data(), gate.data(), pages.view(), out.data());
    for (int t = 0; t < n; ++t) {
      for (int h = 0; h < 4; ++h) {
        std::vector<double> p;
        double total = 0;
        for (int s = 0; s <= t; ++s) {
          double score = 0;
          for (int i = 0; i < 8; ++i)
            score += static_cast<double>(q[t * 32 + h * 8 + i]) * k[s * 16 + h / 2 * 8 + i];
          p.push_back(std::exp(score / std::sqrt(8.0)));
          total += p.back();
        }
        for (int i = 0; i < 8; ++i) {
          double sum = 0;
          for (int s = 0; s <= t; ++s) sum += p[s] / total * v[s * 16 + h / 2 * 8 + i];
          want[t * 32 + h * 8 + i] =
              static_cast<float>(sum / (1 + std::exp(-gate[t * 32 + h * 8 + i])));
        }
      }
    }
    EXPECT_TRUE(AllClose(out, want, {.abs = 1e-5})) << n << " positions";
  }
}

TEST_F(ExactOpsTest, DeltaRuleAgreesWithItsDefinition) {
  const DeltaShape shape{.key_heads = 2, .value_heads = 4, .key_dim = 3, .value_dim = 5};
  constexpr int kRows = 6;
  const Floats mixed = Random(kRows * shape.channels(), 1), ba = Random(kRows * 8, 2);
  const Floats z = Random(kRows * 20, 3), a_log = Random(4, 4), dt_bias = Random(4, 5);
  const Floats norm = Random(5, 6);
  Floats state(4 * 3 * 5, 0.f), out(kRows * 20);
  ops_.DeltaRule(shape, {a_log.data(), dt_bias.data(), norm.data(), 1e-6f}, kRows, mixed.data(),
                 ba.data(), z.data(), state.data(), out.data());

  Floats want(out.size()), want_state(state.size());
  for (int j = 0; j < 4; ++j) {
    double s[3][5] = {};
    for (int t = 0; t < kRows; ++t) {
      const float* row = mixed.data() + t * shape.channels();
      double q[3], k[3], nq = 1e-6, nk = 1e-6;
      for (int i = 0; i < 3; ++i) {
        q[i] = row[j / 2 * 3 + i], k[i] = row[6 + j / 2 * 3 + i];
        nq += q[i] * q[i], nk += k[i] * k[i];
      }
      const float* gates = ba.data() + t * 8 + j / 2 * 4;
      const double beta = 1 / (1 + std::exp(-gates[j % 2]));
      const double g = -std::exp(a_log[j]) * std::log1p(std::exp(gates[2 + j % 2] + dt_bias[j]));
      double o[5], mean = 0;
      for (int c = 0; c < 5; ++c) {
        double seen = 0;
        for (int i = 0; i < 3; ++i) seen += (s[i][c] *= std::exp(g)) * k[i] / std::sqrt(nk);
        const double change = beta * (row[12 + j * 5 + c] - seen);
        o[c] = 0;
        for (int i = 0; i < 3; ++i) {
          s[i][c] += k[i] / std::sqrt(nk) * change;
          o[c] += s[i][c] * q[i] / std::sqrt(nq) / std::sqrt(3.0);
        }
        mean += o[c] * o[c] / 5;
      }
      for (int c = 0; c < 5; ++c) {
        const double gate = z[t * 20 + j * 5 + c];
        want[t * 20 + j * 5 + c] = static_cast<float>(norm[c] * o[c] / std::sqrt(mean + 1e-6) *
                                                      gate / (1 + std::exp(-gate)));
      }
    }
    for (int i = 0; i < 15; ++i) want_state[j * 15 + i] = static_cast<float>(s[i / 5][i % 5]);
  }
  EXPECT_TRUE(AllClose(out, want, {.abs = 1e-4}));
  EXPECT_TRUE(AllClose(state, want_state, {.abs = 1e-5}));
}

TEST_F(ExactOpsTest, ExpertsSumTheirChoicesWithTheirWeights) {
  constexpr int kWidth = 8, kInner = 6, kRows = 3, kTopK = 2;
  std::vector<Floats> weights;
  std::vector<ExpertRef> experts;
  for (uint32_t e = 0; e < 3; ++e) {
    weights.push_back(Random(kInner * kWidth, 10 + e));
    weights.push_back(Random(kInner * kWidth, 20 + e));
    weights.push_back(Random(kInner * kWidth, 30 + e));
  }
  for (size_t e = 0; e < 3; ++e) {
    experts.push_back({F32(weights[3 * e], kInner, kWidth), F32(weights[3 * e + 1], kInner, kWidth),
                       F32(weights[3 * e + 2], kWidth, kInner)});
  }
  const Floats h = Random(kRows * kWidth, 1);
  // All rows choose expert 2, nobody chooses expert 1.
  const RouterChoice choice{.ids = {2, 0, 0, 2, 2, 0}, .weights = {.7f, .3f, .6f, .4f, .5f, .5f}};
  const std::vector<ExpertWork> work = {{experts[0], {0, 1, 2}, {1, 2, 5}},
                                        {experts[2], {0, 1, 2}, {0, 3, 4}}};
  Floats out(kRows * kWidth), want(kRows * kWidth, 0.f), alone(kWidth);
  ops_.Experts(kRows, kWidth, kTopK, h.data(), work, choice, out.data());
  for (int place = 0; place < kRows * kTopK; ++place) {
    ops_.Mlp(experts[static_cast<size_t>(choice.ids[place])], 1, h.data() + place / 2 * kWidth,
             alone.data());
    for (int i = 0; i < kWidth; ++i)
      want[place / 2 * kWidth + i] += choice.weights[place] * alone[i];
  }
  EXPECT_TRUE(AllClose(out, want, {.abs = 1e-5}));
}

}  // namespace
}  // namespace hearth::worker
