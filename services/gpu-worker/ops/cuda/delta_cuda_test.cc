#include "services/gpu-worker/ops/cuda/delta_cuda.h"

#include <vector>

#include "common/testing/compare.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/rounded_testing.h"
#include "services/gpu-worker/ops/exact_ops.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using Floats = std::vector<float>;

constexpr int kWidth = 4;
constexpr float kEps = 1e-6f;

// A layer's weights and what some sequences bring, on the host.
struct Layer {
  Layer(const DeltaShape& delta_shape, const SequenceRows& sequence_rows, int conv_width,
        uint32_t seed)
      : shape(delta_shape), rows(sequence_rows), width(conv_width) {
    const int64_t values = int64_t{shape.value_heads} * shape.value_dim, total = rows.total();
    qkvz = RandomFloats(total * (shape.channels() + values), seed);
    ba = RandomFloats(total * 2 * shape.value_heads, seed + 1);
    kernel = RandomFloats(int64_t{width} * shape.channels(), seed + 2);
    a_log = RandomFloats(shape.value_heads, seed + 3);
    dt_bias = RandomFloats(shape.value_heads, seed + 4);
    norm = RandomFloats(shape.value_dim, seed + 5);
    for (int s = 0; s < rows.n_sequences; ++s) {
      const uint32_t own = seed + 10 + 2 * static_cast<uint32_t>(s);
      histories.push_back(RandomFloats(int64_t{width - 1} * shape.channels(), own));
      states.push_back(RandomFloats(values * shape.key_dim, own + 1));
    }
  }
  int64_t values() const { return int64_t{shape.value_heads} * shape.value_dim; }

  DeltaShape shape;
  SequenceRows rows;
  int width;
  Floats qkvz, ba, kernel, a_log, dt_bias, norm;
  std::vector<Floats> histories, states;
};

// By the reference: `layer`'s histories and states move on.
Floats RunExact(Layer& layer) {
  Parallel parallel{2};
  ExactOps exact{&parallel};
  const DeltaShape& shape = layer.shape;
  const int n = layer.rows.n_rows;
  Floats out(static_cast<size_t>(layer.rows.total() * layer.values()));
  for (int s = 0; s < layer.rows.n_sequences; ++s) {
    const int64_t row = int64_t{s} * n;
    Floats mixed(static_cast<size_t>(int64_t{n} * shape.channels())), convolved(mixed.size());
    Floats z(static_cast<size_t>(n * layer.values()));
    exact.SplitQkvz(shape, n, layer.qkvz.data() + row * (shape.channels() + layer.values()),
                    mixed.data(), z.data());
    const auto at = static_cast<size_t>(s);
    exact.Convolve(n, shape.channels(), layer.width, layer.kernel.data(), mixed.data(),
                   layer.histories[at].data(), convolved.data());
    exact.DeltaRule(shape,
                    {.a_log = layer.a_log.data(),
                     .dt_bias = layer.dt_bias.data(),
                     .norm = layer.norm.data(),
                     .eps = kEps},
                    n, convolved.data(), layer.ba.data() + row * 2 * shape.value_heads, z.data(),
                    layer.states[at].data(), out.data() + row * layer.values());
  }
  return out;
}

std::vector<DeviceBuffer<float>> AllToDevice(const std::vector<Floats>& all) {
  std::vector<DeviceBuffer<float>> buffers;
  for (const Floats& one : all) buffers.push_back(ToDevice(one));
  return buffers;
}

// The table of sequences; that of number `idle` is null.
DeviceBuffer<float*> TableOf(std::vector<DeviceBuffer<float>>& buffers, int idle) {
  std::vector<float*> table;
  for (auto& buffer : buffers) table.push_back(buffer.data());
  if (idle >= 0) table[static_cast<size_t>(idle)] = nullptr;
  return ToDevice(table);
}

// By the device: the same.
Floats RunCuda(Layer& layer, int parts, int idle = -1) {
  const int64_t total = layer.rows.total();
  const auto qkvz = ToDevice(layer.qkvz), ba = ToDevice(layer.ba), kernel = ToDevice(layer.kernel),
             a_log = ToDevice(layer.a_log), dt_bias = ToDevice(layer.dt_bias),
             norm = ToDevice(layer.norm);
  auto histories = AllToDevice(layer.histories), states = AllToDevice(layer.states);
  const auto history_table = TableOf(histories, idle), state_table = TableOf(states, idle);
  auto mixed = Poisoned<float>(total * layer.shape.channels());
  auto decay = Poisoned<float>(total * layer.shape.value_heads);
  auto beta = Poisoned<float>(total * layer.shape.value_heads);
  auto out = Poisoned<float>(total * layer.values());
  RoundedBuffer rounded(static_cast<int>(total), static_cast<int>(layer.values()));
  const bool is_rounded = layer.shape.value_dim % 64 == 0 && idle < 0 && total <= kMaxDecodeRows;
  const DeltaInputs inputs{mixed.data(), decay.data(), beta.data()};
  HEARTH_EXPECT_CUDA(ConvolveCuda(layer.shape, layer.rows,
                                  {.width = layer.width,
                                   .kernel = kernel.data(),
                                   .a_log = a_log.data(),
                                   .dt_bias = dt_bias.data()},
                                  qkvz.data(), ba.data(), history_table.data(), inputs, nullptr));
  HEARTH_EXPECT_CUDA(DeltaRuleCuda(layer.shape, layer.rows, inputs, qkvz.data(), norm.data(), kEps,
                                   state_table.data(), out.data(),
                                   is_rounded ? rounded.rows() : RoundedRows{}, parts, nullptr));
  if (is_rounded) {
    ExpectSameProducts(static_cast<int>(total), static_cast<int>(layer.values()), out.data(),
                       rounded.rows());
  }
  for (size_t s = 0; s < states.size(); ++s) {
    layer.histories[s] = ToHost(histories[s]);
    layer.states[s] = ToHost(states[s]);
  }
  return ToHost(out);
}

// The same of one row of each sequence, by the kernel that does it all.
Floats RunStep(Layer& layer, int idle = -1) {
  const int n = layer.rows.n_sequences;
  const auto qkvz = ToDevice(layer.qkvz), ba = ToDevice(layer.ba), kernel = ToDevice(layer.kernel),
             a_log = ToDevice(layer.a_log), dt_bias = ToDevice(layer.dt_bias),
             norm = ToDevice(layer.norm);
  auto histories = AllToDevice(layer.histories), states = AllToDevice(layer.states);
  const auto history_table = TableOf(histories, idle), state_table = TableOf(states, idle);
  const std::vector<uint32_t> none(static_cast<size_t>(n * layer.shape.key_heads));
  auto arrivals = ToDevice(none);
  auto out = Poisoned<float>(n * layer.values());
  RoundedBuffer rounded(n, static_cast<int>(layer.values()));
  const bool is_rounded = layer.shape.value_dim % 64 == 0 && idle < 0;
  const DeltaStep step{.weights = {.width = layer.width,
                                   .kernel = kernel.data(),
                                   .a_log = a_log.data(),
                                   .dt_bias = dt_bias.data()},
                       .qkvz = qkvz.data(),
                       .ba = ba.data(),
                       .norm = norm.data(),
                       .eps = kEps,
                       .histories = history_table.data(),
                       .states = state_table.data(),
                       .arrivals = arrivals.data()};
  HEARTH_EXPECT_CUDA(DeltaStepCuda(layer.shape, n, step, out.data(),
                                   is_rounded ? rounded.rows() : RoundedRows{}, nullptr));
  if (is_rounded) {
    ExpectSameProducts(n, static_cast<int>(layer.values()), out.data(), rounded.rows());
  }
  EXPECT_EQ(ToHost(arrivals), none);
  for (size_t s = 0; s < states.size(); ++s) {
    layer.histories[s] = ToHost(histories[s]);
    layer.states[s] = ToHost(states[s]);
  }
  return ToHost(out);
}

class DeltaCudaTest : public CudaTest {
 protected:
  void ExpectAgreement(Layer layer, int parts) {
    Layer same = layer;
    const Floats want = RunExact(layer), got = RunCuda(same, parts);
    // Unit keys bound the states' growth; outputs are divided by their own root mean square.
    EXPECT_TRUE(AllClose(got, want, {.abs = 2e-4, .rel = 1e-4}));
    for (size_t s = 0; s < layer.states.size(); ++s) {
      EXPECT_EQ(same.histories[s], layer.histories[s]);
      EXPECT_TRUE(AllClose(same.states[s], layer.states[s], {.abs = 2e-5, .rel = 1e-4}));
    }
  }
};

TEST_F(DeltaCudaTest, OneRowOfEachSequenceAgrees) {
  uint32_t seed = 100;
  for (const DeltaShape& shape :
       {DeltaShape{1, 2, 16, 16}, DeltaShape{2, 4, 32, 32}, DeltaShape{4, 8, 64, 32},
        DeltaShape{1, 3, 48, 20}, DeltaShape{16, 16, 16, 128}, DeltaShape{16, 32, 128, 128}}) {
    for (const int n_sequences : {1, 3, 8}) {
      for (const int parts : {0, 1, 2}) {
        SCOPED_TRACE(::testing::Message() << shape.value_heads << " heads of " << shape.key_dim
                                          << " x " << shape.value_dim << ", parts " << parts);
        ExpectAgreement(Layer(shape, {n_sequences, 1}, kWidth, seed += 100), parts);
      }
    }
  }
}

TEST_F(DeltaCudaTest, AStepInOneLaunchHasTheBitsOfTwo) {
  uint32_t seed = 50000;
  for (const DeltaShape& shape :
       {DeltaShape{1, 2, 16, 16}, DeltaShape{2, 4, 32, 32}, DeltaShape{4, 8, 64, 32},
        DeltaShape{1, 3, 48, 20}, DeltaShape{16, 16, 16, 128}, DeltaShape{16, 32, 128, 128}}) {
    for (const int width : {2, 3, 4}) {
      for (const int n_sequences : {1, 3, 8}) {
        SCOPED_TRACE(::testing::Message() << shape.value_heads << " heads of " << shape.key_dim
                                          << " x " << shape.value_dim << ", width " << width);
        Layer exact(shape, {n_sequences, 1}, width, seed += 100), two = exact, one = exact;
        const Floats want = RunExact(exact), expected = RunCuda(two, 0), got = RunStep(one);
        EXPECT_TRUE(AllClose(got, want, {.abs = 2e-4, .rel = 1e-4}));
        EXPECT_EQ(got, expected);
        EXPECT_EQ(one.states, two.states);
        EXPECT_EQ(one.histories, exact.histories);
      }
    }
  }
}

TEST_F(DeltaCudaTest, ManyRowsOfASequenceAgree) {
  uint32_t seed = 10000;
  for (const int n_rows : {2, 3, 4, 31, 32, 33, 70}) {
    SCOPED_TRACE(n_rows);
    ExpectAgreement(Layer({2, 4, 32, 32}, {1, n_rows}, kWidth, seed += 100), 0);
    ExpectAgreement(Layer({2, 4, 128, 128}, {1, n_rows}, kWidth, seed += 100), 1);
    ExpectAgreement(Layer({1, 2, 64, 16}, {3, n_rows}, 2, seed += 100), 0);
    ExpectAgreement(Layer({1, 2, 16, 64}, {2, n_rows}, 3, seed += 100), 4);
  }
}

TEST_F(DeltaCudaTest, RowsOneByOneAreTheSameBitsAsTogether) {
  const DeltaShape shape{2, 4, 64, 64};
  constexpr int kRows = 9;
  Layer together(shape, {1, kRows}, kWidth, 5), step = together;
  const Floats want = RunCuda(together, 0);
  const auto rest = together.qkvz.size() / kRows, gates = together.ba.size() / kRows;
  const Layer whole = step;
  step.rows = {1, 1};
  for (size_t t = 0; t < kRows; ++t) {
    const auto cut = [t](const Floats& all, size_t n) {
      const auto from = all.begin() + static_cast<int64_t>(t * n);
      return Floats(from, from + static_cast<int64_t>(n));
    };
    step.qkvz = cut(whole.qkvz, rest);
    step.ba = cut(whole.ba, gates);
    const auto values = static_cast<size_t>(step.values());
    EXPECT_EQ(RunCuda(step, static_cast<int>(t % 3)), cut(want, values)) << t;
  }
  EXPECT_EQ(step.states, together.states);
  EXPECT_EQ(step.histories, together.histories);
}

TEST_F(DeltaCudaTest, AnIdlePlaceIsLeftAlone) {
  for (const int parts : {1, 2}) {
    Layer layer({2, 4, 32, 32}, {3, 1}, kWidth, 9), same = layer;
    const Floats want = RunExact(layer), got = RunCuda(same, parts, /*idle=*/1);
    const auto n = static_cast<size_t>(layer.values());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(IsPoison(got[i]), i / n == 1) << i;
    const auto last = [&](const Floats& all) {
      return Floats(all.begin() + static_cast<int64_t>(2 * n), all.end());
    };
    EXPECT_TRUE(AllClose(last(got), last(want), {.abs = 2e-4, .rel = 1e-4}));
  }
}

TEST_F(DeltaCudaTest, AStepLeavesAnIdlePlaceAlone) {
  Layer layer({2, 4, 32, 32}, {3, 1}, kWidth, 9), same = layer;
  const Layer before = layer;
  const Floats want = RunExact(layer), got = RunStep(same, /*idle=*/1);
  const auto n = static_cast<size_t>(layer.values());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(IsPoison(got[i]), i / n == 1) << i;
  EXPECT_EQ(same.states[1], before.states[1]);
  EXPECT_EQ(same.histories[1], before.histories[1]);
  EXPECT_EQ(same.histories[2], layer.histories[2]);
}

TEST_F(DeltaCudaTest, RefusesShapesItCannotHold) {
  const auto rule = [](const DeltaShape& shape) {
    return DeltaRuleCuda(shape, {1, 1}, {}, nullptr, nullptr, 0, nullptr, nullptr, 0, nullptr);
  };
  EXPECT_EQ(rule({2, 4, 160, 128}), cudaErrorInvalidValue);
  EXPECT_EQ(rule({2, 4, 128, 132}), cudaErrorInvalidValue);
  EXPECT_EQ(rule({2, 4, 128, 30}), cudaErrorInvalidValue);
  EXPECT_EQ(rule({2, 3, 128, 128}), cudaErrorInvalidValue);
  EXPECT_EQ(
      ConvolveCuda({2, 4, 32, 32}, {1, 1}, {.width = 5}, nullptr, nullptr, nullptr, {}, nullptr),
      cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
