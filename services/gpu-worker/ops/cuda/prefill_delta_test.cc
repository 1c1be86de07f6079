// The chunked delta rule against the recurrent one, which its own test holds to the reference.
#include "services/gpu-worker/ops/cuda/prefill_delta.h"

#include <cmath>
#include <vector>

#include "common/testing/compare.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using PrefillDeltaTest = CudaTest;
using Floats = std::vector<float>;

constexpr float kEps = 1e-6f;

// What a layer's convolution hands over, on the device: unit keys, queries of 1 / sqrt(dk).
struct Inputs {
  // `forgetting`: the typical -log of a row's decay.
  Inputs(const DeltaShape& delta_shape, int rows, float forgetting, uint32_t seed)
      : shape(delta_shape), n_rows(rows) {
    Floats all = RandomFloats(int64_t{n_rows} * shape.channels(), seed);
    for (auto row = all.begin(); row != all.end(); row += shape.channels()) {
      for (int head = 0; head < 2 * shape.key_heads; ++head) {
        const auto first = row + head * shape.key_dim;
        float squares = 0;
        for (int i = 0; i < shape.key_dim; ++i) squares += first[i] * first[i];
        const float query = head < shape.key_heads ? static_cast<float>(shape.key_dim) : 1.f;
        for (int i = 0; i < shape.key_dim; ++i) first[i] /= std::sqrt(squares * query);
      }
    }
    mixed = ToDevice(all);
    Floats decays, betas;
    for (const float value : RandomFloats(int64_t{n_rows} * shape.value_heads, seed + 1)) {
      decays.push_back(std::exp(-forgetting * std::exp(value)));
    }
    for (const float value : RandomFloats(int64_t{n_rows} * shape.value_heads, seed + 2)) {
      betas.push_back(1 / (1 + std::exp(-value)));
    }
    decay = ToDevice(decays), beta = ToDevice(betas);
    qkvz = ToDevice(RandomFloats(int64_t{n_rows} * (shape.channels() + values()), seed + 3));
    norm = ToDevice(RandomFloats(shape.value_dim, seed + 4));
    state = RandomFloats(values() * shape.key_dim, seed + 5);
  }
  int64_t values() const { return int64_t{shape.value_heads} * shape.value_dim; }

  DeltaShape shape;
  int n_rows;
  DeviceBuffer<float> mixed, decay, beta, qkvz, norm;
  Floats state;
};

struct Result {
  Floats out, state;
};

// Rows first .. first + n - 1 from `state` on.
Result Compute(Inputs& inputs, bool is_chunked, int first, int n, const Floats& state,
               bool is_idle) {
  const DeltaShape& shape = inputs.shape;
  auto device_state = ToDevice(state);
  const auto table = ToDevice(std::vector<float*>{is_idle ? nullptr : device_state.data()});
  const DeltaInputs in{inputs.mixed.data() + int64_t{first} * shape.channels(),
                       inputs.decay.data() + int64_t{first} * shape.value_heads,
                       inputs.beta.data() + int64_t{first} * shape.value_heads};
  const float* qkvz = inputs.qkvz.data() + first * (shape.channels() + inputs.values());
  auto out = Poisoned<float>(n * inputs.values());
  auto scratch = Poisoned<uint8_t>(PrefillDeltaScratchBytes(shape, n) + 1);
  if (is_chunked) {
    HEARTH_EXPECT_CUDA(PrefillDeltaRuleCuda(shape, n, in, qkvz, inputs.norm.data(), kEps,
                                            table.data(), scratch.data(), out.data(), nullptr));
  } else {
    HEARTH_EXPECT_CUDA(DeltaRuleCuda(shape, {1, n}, in, qkvz, inputs.norm.data(), kEps,
                                     table.data(), out.data(), 0, nullptr));
  }
  const Result result{ToHost(out), ToHost(device_state)};
  EXPECT_EQ(ToHost(scratch).back(), 0xff) << "wrote past the scratch's end";
  return result;
}

Result Compute(Inputs& inputs, bool is_chunked) {
  return Compute(inputs, is_chunked, 0, inputs.n_rows, inputs.state, false);
}

// The root of the mean square of the differences.
double Distance(const Floats& a, const Floats& b) {
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squares / static_cast<double>(a.size()));
}

TEST_F(PrefillDeltaTest, AgreesWithTheRecurrentRule) {
  uint32_t seed = 1;
  for (const DeltaShape& shape :
       {DeltaShape{1, 2, 16, 16}, DeltaShape{2, 4, 32, 32}, DeltaShape{1, 3, 48, 80},
        DeltaShape{2, 4, 128, 128}, DeltaShape{16, 32, 128, 128}}) {
    for (const int n_rows : {1, 9, 63, 64, 65, 130, 600}) {
      for (const float forgetting : {1e-4f, 0.02f, 1.f, 30.f}) {
        SCOPED_TRACE(::testing::Message()
                     << shape.value_heads << " heads of " << shape.key_dim << " x "
                     << shape.value_dim << ", " << n_rows << " rows, forgetting " << forgetting);
        Inputs inputs(shape, n_rows, forgetting, seed += 10);
        const Result want = Compute(inputs, false), got = Compute(inputs, true);
        // f16 keeps 2^-11 of what is multiplied; values are about 1. A head whose outputs nearly
        // cancel is divided by their own small root mean square: a few values are further off.
        EXPECT_LT(Distance(got.out, want.out), 1e-3);
        EXPECT_LT(Distance(got.state, want.state), 6e-4);
        EXPECT_TRUE(AllClose(got.out, want.out, {.abs = 0.1, .rel = 0.02}));
        EXPECT_TRUE(AllClose(got.state, want.state, {.abs = 5e-3, .rel = 5e-3}));
      }
    }
  }
}

TEST_F(PrefillDeltaTest, LaunchesOfWholeChunksAreTheSameBitsAsOne) {
  Inputs inputs({2, 4, 64, 64}, 300, 0.1f, 77);
  const Result all = Compute(inputs, true);
  const Result first = Compute(inputs, true, 0, 128, inputs.state, false);
  const Result rest = Compute(inputs, true, 128, 172, first.state, false);
  Floats out = first.out;
  out.insert(out.end(), rest.out.begin(), rest.out.end());
  EXPECT_EQ(out, all.out);
  EXPECT_EQ(rest.state, all.state);
}

TEST_F(PrefillDeltaTest, AnIdlePlaceIsLeftAlone) {
  Inputs inputs({2, 4, 32, 32}, 70, 0.1f, 78);
  const Result got = Compute(inputs, true, 0, 70, inputs.state, true);
  EXPECT_EQ(got.state, inputs.state);
  for (const float value : got.out) EXPECT_TRUE(IsPoison(value));
}

TEST_F(PrefillDeltaTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  const auto rule = [](const DeltaShape& shape, int n_rows) {
    return PrefillDeltaRuleCuda(shape, n_rows, {}, nullptr, nullptr, 0, nullptr, nullptr, nullptr,
                                nullptr);
  };
  EXPECT_EQ(rule({2, 4, 128, 128}, 0), cudaSuccess);
  EXPECT_EQ(rule({2, 4, 144, 128}, 9), cudaErrorInvalidValue);
  EXPECT_EQ(rule({2, 4, 128, 20}, 9), cudaErrorInvalidValue);
  EXPECT_EQ(rule({2, 3, 128, 128}, 9), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
