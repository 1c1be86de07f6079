// The fast backend against the float32 one: close where it rounds, equal where it doesn't, and the
// same bits for a row whatever its company, its chunk and the number of threads.
#include "services/gpu-worker/ops/fast_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/tensor/tiled.h"
#include "common/testing/compare.h"
#include "services/gpu-worker/ops/exact_ops.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using Floats = std::vector<float>;

Floats Random(int64_t n, uint32_t seed, float size = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, size);
  Floats values(static_cast<size_t>(n));
  for (float& value : values) value = normal(random);
  return values;
}

class FastOpsTest : public ::testing::TestWithParam<const Kernels*> {
 protected:
  // Pages of one sequence with random keys and values.
  struct Pages {
    Pages(int n_tokens, int page_tokens, int row, uint32_t seed)
        : memory(Random(int64_t{2} * (n_tokens + page_tokens) * row, seed)), tokens(page_tokens) {
      for (int p = 0; p * page_tokens < n_tokens; ++p) {
        keys.push_back(memory.data() + int64_t{2} * p * page_tokens * row);
        values.push_back(keys.back() + int64_t{page_tokens} * row);
      }
    }
    KvPages view() const { return {keys, values, tokens}; }
    Floats memory;
    std::vector<float*> keys, values;
    int tokens;
  };

  Parallel one_{1}, three_{ThreadPoolOptions{.n_threads = 3, .spin_microseconds = 50}};
  ExactOps exact_{&one_};
  FastOps fast_{&one_, GetParam()}, threaded_{&three_, GetParam()};
};

// A 4-bit matrix as the checkpoint has it, and in tiles.
struct TwoForms {
  TwoForms(int64_t out, int64_t in, uint32_t seed) {
    plain = {.kind = WeightKind::kBlock4, .out = out, .in = in};
    plain.levels = kNf4Levels;
    std::mt19937 random(seed);
    codes.resize(static_cast<size_t>(out * in / 2));
    for (auto& code : codes) code = static_cast<uint8_t>(random());
    absmax.resize(static_cast<size_t>(out * in / 64));
    for (auto& scale : absmax) scale = 0.05f + static_cast<float>(random() % 100) / 1000;
    plain.data = codes.data(), plain.absmax = absmax.data();
    tiled = Tiled4Form(plain);
    data.resize(BytesOf(tiled).data);
    scales.resize(BytesOf(tiled).absmax / 2);
    tiled.factor = Tile4(plain, data.data(), scales.data());
    tiled.data = data.data(), tiled.scales = scales.data();
  }
  TwoForms(const TwoForms&) = delete;
  LinearRef plain, tiled;
  std::vector<uint8_t> codes, data;
  std::vector<float> absmax;
  std::vector<uint16_t> scales;
};

double RelativeRms(const Floats& got, const Floats& want) {
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(double{got[i]} - want[i], 2);
    size += std::pow(double{want[i]}, 2);
  }
  return std::sqrt(error / size);
}

TEST_P(FastOpsTest, TiledLinearsAreNearAndRowsDoNotDependOnTheirCompany) {
  for (const int64_t out : {1, 16, 37, 130, 512}) {
    const TwoForms weights(out, 256, static_cast<uint32_t>(out));
    for (const int n : {1, 7, 8, 9, 17}) {
      const Floats x = Random(n * 256, 5);
      Floats want(static_cast<size_t>(n * out)), got(want.size(), NAN), threaded(want.size(), NAN);
      exact_.Linear(weights.plain, n, x.data(), want.data());
      fast_.Linear(weights.tiled, n, x.data(), got.data());
      threaded_.Linear(weights.tiled, n, x.data(), threaded.data());
      EXPECT_EQ(got, threaded);
      if (out > 16) {
        EXPECT_LT(RelativeRms(got, want), 0.012);  // of int8: 1 / 127 / sqrt(3) a row
      }
      for (int t = 0; t < n; ++t) {
        Floats alone(static_cast<size_t>(out));
        fast_.Linear(weights.tiled, 1, x.data() + t * 256, alone.data());
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), got.begin() + t * out));
      }
    }
  }
}

TEST_P(FastOpsTest, LinearsWithoutAFastFormAreTheFloat32Ones) {
  TwoForms weights(9, 192, 1);
  weights.plain.block_size = 128;  // blocks straddle rows
  const Floats x = Random(3 * 192, 2);
  Floats want(27), got(27);
  exact_.Linear(weights.plain, 3, x.data(), want.data());
  fast_.Linear(weights.plain, 3, x.data(), got.data());
  EXPECT_EQ(got, want);
}

class Moe {
 public:
  Moe(int n_experts, int64_t width, int64_t inner) {
    for (int e = 0; e < n_experts; ++e) {
      const auto seed = static_cast<uint32_t>(10 * e);
      for (const auto& [out, in] : {std::pair{inner, width}, {inner, width}, {width, inner}}) {
        matrices_.push_back(std::make_unique<TwoForms>(out, in, seed + matrices_.size() % 3));
      }
    }
  }
  ExpertRef Plain(size_t e) const {
    return {matrices_[3 * e]->plain, matrices_[3 * e + 1]->plain, matrices_[3 * e + 2]->plain};
  }
  ExpertRef Tiled(size_t e) const {
    return {matrices_[3 * e]->tiled, matrices_[3 * e + 1]->tiled, matrices_[3 * e + 2]->tiled};
  }

 private:
  std::vector<std::unique_ptr<TwoForms>> matrices_;
};

std::vector<ExpertWork> WorkOf(const RouterChoice& choice, int top_k, int n_experts,
                               const std::function<ExpertRef(size_t)>& expert) {
  std::vector<ExpertWork> work(static_cast<size_t>(n_experts));
  for (size_t place = 0; place < choice.ids.size(); ++place) {
    auto& item = work[static_cast<size_t>(choice.ids[place])];
    item.expert = expert(static_cast<size_t>(choice.ids[place]));
    item.rows.push_back(static_cast<int32_t>(place) / top_k);
    item.places.push_back(static_cast<int32_t>(place));
  }
  std::erase_if(work, [](const ExpertWork& item) { return item.rows.empty(); });
  return work;
}

TEST_P(FastOpsTest, ExpertsAreNearAndRowsDoNotDependOnTheirCompany) {
  constexpr int kExperts = 5, kTopK = 2;
  for (const int64_t inner : {64, 128}) {
    const Moe moe(kExperts, 192, inner);
    for (const int n : {1, 3, 20}) {
      RouterChoice choice;
      std::mt19937 random(static_cast<uint32_t>(n));
      for (int t = 0; t < n; ++t) {
        const auto first = static_cast<int32_t>(random() % 3);  // expert 4 is chosen by nobody
        choice.ids.insert(choice.ids.end(), {first, n == 20 ? 3 : (first + 1) % 4});
        choice.weights.insert(choice.weights.end(), {0.7f, 0.3f});
      }
      const Floats h = Random(n * 192, 7);
      Floats want(static_cast<size_t>(n * 192)), got(want.size(), NAN), threaded(want.size(), NAN);
      const auto plain = WorkOf(choice, kTopK, kExperts, [&](size_t e) { return moe.Plain(e); });
      const auto tiled = WorkOf(choice, kTopK, kExperts, [&](size_t e) { return moe.Tiled(e); });
      exact_.Experts(n, 192, kTopK, h.data(), plain, choice, want.data());
      fast_.Experts(n, 192, kTopK, h.data(), tiled, choice, got.data());
      threaded_.Experts(n, 192, kTopK, h.data(), tiled, choice, threaded.data());
      EXPECT_EQ(got, threaded);
      EXPECT_LT(RelativeRms(got, want), 0.03) << n;
      for (int t = 0; t < n; ++t) {
        const RouterChoice alone_choice{.ids = {choice.ids[static_cast<size_t>(2 * t)],
                                                choice.ids[static_cast<size_t>(2 * t + 1)]},
                                        .weights = {0.7f, 0.3f}};
        const auto work =
            WorkOf(alone_choice, kTopK, kExperts, [&](size_t e) { return moe.Tiled(e); });
        Floats alone(192);
        fast_.Experts(1, 192, kTopK, h.data() + t * 192, work, alone_choice, alone.data());
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), got.begin() + t * 192)) << t;
      }
      Floats mlp(want.size()), mlp_want(want.size());
      exact_.Mlp(moe.Plain(0), n, h.data(), mlp_want.data());
      fast_.Mlp(moe.Tiled(0), n, h.data(), mlp.data());
      EXPECT_LT(RelativeRms(mlp, mlp_want), 0.03);
    }
  }
}

TEST_P(FastOpsTest, ExpertsInBf16AreAsExactAsFloat32) {
  constexpr int64_t kWidth = 48, kInner = 20;  // no multiples of 64 needed
  std::vector<std::vector<uint16_t>> memory;
  const auto bf16 = [&](int64_t out, int64_t in, uint32_t seed) {
    auto& values = memory.emplace_back();
    for (const float w : Random(out * in, seed, 0.2f)) values.push_back(F32ToBF16(w));
    LinearRef ref{.kind = WeightKind::kBF16, .out = out, .in = in};
    ref.data = values.data();
    return ref;
  };
  std::vector<ExpertRef> experts;
  for (uint32_t e = 0; e < 3; ++e) {
    experts.push_back(
        {bf16(kInner, kWidth, e), bf16(kInner, kWidth, e + 10), bf16(kWidth, kInner, e + 20)});
  }
  const RouterChoice choice{.ids = {2, 0, 0, 2, 2, 0, 2, 1},
                            .weights = {.7f, .3f, .6f, .4f, .5f, .5f, 1, 0}};
  const auto work = WorkOf(choice, 2, 3, [&](size_t e) { return experts[e]; });
  const Floats h = Random(4 * kWidth, 1);
  Floats want(4 * kWidth), got(want.size(), NAN);
  exact_.Experts(4, kWidth, 2, h.data(), work, choice, want.data());
  fast_.Experts(4, kWidth, 2, h.data(), work, choice, got.data());
  EXPECT_TRUE(AllClose(got, want, {.abs = 1e-5}));
}

TEST_P(FastOpsTest, AttentionAgreesAtEveryPageAndStretchBoundary) {
  const AttentionShape shape{.n_heads = 6, .n_kv_heads = 2, .head_dim = 48};
  for (const int page_tokens : {16, 5, 40}) {
    for (const int64_t first : {0, 1, 14, 15, 16, 17, 511, 512, 513, 1100}) {
      const int n = 3;
      const Pages pages(static_cast<int>(first) + n, page_tokens, 96, 11);
      const Floats q = Random(n * 288, 1), gate = Random(n * 288, 2);
      Floats want(q.size()), got(q.size(), NAN), threaded(q.size(), NAN), alone(288);
      exact_.Attention(shape, n, first, q.data(), gate.data(), pages.view(), want.data());
      fast_.Attention(shape, n, first, q.data(), gate.data(), pages.view(), got.data());
      threaded_.Attention(shape, n, first, q.data(), gate.data(), pages.view(), threaded.data());
      EXPECT_TRUE(AllClose(got, want, {.abs = 2e-5})) << first << ", pages of " << page_tokens;
      EXPECT_EQ(got, threaded) << first;
      threaded_.Attention(shape, 1, first + n - 1, q.data() + 2 * 288, gate.data() + 2 * 288,
                          pages.view(), alone.data());
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), got.end() - 288)) << first;
    }
  }
}

TEST_P(FastOpsTest, DeltaRuleAgreesAndIsTheSameInChunks) {
  for (const int dv : {16, 32, 48, 128}) {
    const DeltaShape shape{.key_heads = 2, .value_heads = 4, .key_dim = 12, .value_dim = dv};
    constexpr int kRows = 7;
    const int64_t channels = shape.channels(), values = 4 * dv;
    const Floats mixed = Random(kRows * channels, 1), ba = Random(kRows * 8, 2);
    const Floats z = Random(kRows * values, 3), a_log = Random(4, 4), dt_bias = Random(4, 5);
    const Floats norm = Random(dv, 6), start = Random(4 * 12 * dv, 7);
    const Ops::DeltaWeights weights{a_log.data(), dt_bias.data(), norm.data(), 1e-6f};
    const auto run = [&](Ops& ops, int chunk, Floats* state) {
      *state = start;
      Floats out(static_cast<size_t>(kRows * values));
      for (int t = 0; t < kRows; t += chunk) {
        const int n = std::min(chunk, kRows - t);
        ops.DeltaRule(shape, weights, n, mixed.data() + t * channels, ba.data() + t * 8,
                      z.data() + t * values, state->data(), out.data() + t * values);
      }
      return out;
    };
    Floats want_state, got_state, chunked_state;
    const Floats want = run(exact_, kRows, &want_state), got = run(fast_, kRows, &got_state);
    EXPECT_TRUE(AllClose(got, want, {.abs = 1e-4})) << dv;
    EXPECT_TRUE(AllClose(got_state, want_state, {.abs = 1e-5})) << dv;
    for (const int chunk : {1, 3}) {
      EXPECT_EQ(run(threaded_, chunk, &chunked_state), got) << chunk;
      EXPECT_EQ(chunked_state, got_state) << chunk;
    }
  }
}

TEST_P(FastOpsTest, ConvolutionKeepsItsHistory) {
  constexpr int kChannels = 2100, kRows = 5;  // two pieces of columns
  const Floats kernel = Random(4 * kChannels, 1), input = Random(kRows * kChannels, 2);
  Floats want(kRows * kChannels), got(want.size()), history = Random(3 * kChannels, 3);
  Floats want_history = history;
  exact_.Convolve(kRows, kChannels, 4, kernel.data(), input.data(), want_history.data(),
                  want.data());
  for (int t = 0; t < kRows; t += 2) {
    threaded_.Convolve(std::min(2, kRows - t), kChannels, 4, kernel.data(),
                       input.data() + t * kChannels, history.data(), got.data() + t * kChannels);
  }
  EXPECT_TRUE(AllClose(got, want, {.abs = 1e-5}));
  EXPECT_EQ(history, want_history);
}

TEST_P(FastOpsTest, TheRoutersChoiceIsTheFloat32One) {
  constexpr int kExperts = 70, kTopK = 6, kRows = 40;
  Floats logits = Random(kRows * kExperts, 1, 3);
  for (int t = 0; t < kRows; t += 2) {  // ties at the border between chosen and not
    for (int e = 10; e < 30; ++e) logits[static_cast<size_t>(t * kExperts + e)] = 5;
  }
  for (const bool normalise : {true, false}) {
    RouterChoice want, got;
    exact_.Route(kRows, kExperts, kTopK, normalise, logits.data(), &want);
    threaded_.Route(kRows, kExperts, kTopK, normalise, logits.data(), &got);
    EXPECT_EQ(got.ids, want.ids);
    EXPECT_TRUE(AllClose(got.weights, want.weights, {.abs = 1e-6}));
  }
}

INSTANTIATE_TEST_SUITE_P(Usable, FastOpsTest, ::testing::ValuesIn(UsableKernels()),
                         [](const auto& param) { return std::string(param.param->name); });

}  // namespace
}  // namespace hearth::worker
