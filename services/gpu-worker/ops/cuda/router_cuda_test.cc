#include "services/gpu-worker/ops/cuda/router_cuda.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/testing/compare.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/exact_ops.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::AllClose;
using Floats = std::vector<float>;

class RouterCudaTest : public CudaTest {
 protected:
  void ExpectAgreement(const RouterShape& shape, bool normalise, const Floats& logits) {
    const int64_t n = int64_t{shape.n_rows} * shape.top_k;
    const auto device_logits = ToDevice(logits);
    auto ids = Poisoned<int32_t>(n);
    auto weights = Poisoned<float>(n);
    HEARTH_EXPECT_CUDA(
        RouteCuda(shape, normalise, device_logits.data(), ids.data(), weights.data(), nullptr));
    RouterChoice want;
    exact_.Route(shape.n_rows, shape.n_experts, shape.top_k, normalise, logits.data(), &want);
    EXPECT_EQ(ToHost(ids), want.ids) << shape.n_experts << " experts, " << shape.top_k;
    EXPECT_TRUE(AllClose(ToHost(weights), want.weights, {.abs = 1e-7, .rel = 1e-5}));
  }

  Parallel parallel_{2};
  ExactOps exact_{&parallel_};
};

TEST_F(RouterCudaTest, ChoosesAsTheReferenceDoes) {
  uint32_t seed = 1;
  for (const int n_experts : {8, 31, 32, 33, 60, 128, 129, 512, 1000}) {
    for (const int top_k : {1, 4, 8, 10, 32}) {
      if (top_k > n_experts) continue;
      for (const bool normalise : {false, true}) {
        const RouterShape shape{.n_rows = 5, .n_experts = n_experts, .top_k = top_k};
        ExpectAgreement(shape, normalise, RandomFloats(5 * n_experts, seed++, 3));
      }
    }
  }
}

TEST_F(RouterCudaTest, TiesGoToTheLowerId) {
  for (const int n_experts : {8, 64, 512}) {
    Floats logits = RandomFloats(4 * n_experts, 7);
    for (float& logit : logits) logit = std::round(logit);  // a handful of values, -0 among them
    std::fill_n(logits.begin(), n_experts, -1.f);           // and a row of one value
    ExpectAgreement({.n_rows = 4, .n_experts = n_experts, .top_k = 8}, true, logits);
  }
}

TEST_F(RouterCudaTest, SurvivesLogitsFarApart) {
  Floats logits(512, -300.f);
  logits[400] = 80;
  logits[3] = 79;
  ExpectAgreement({.n_rows = 1, .n_experts = 512, .top_k = 10}, true, logits);
}

TEST_F(RouterCudaTest, RefusesWhatDoesNotFit) {
  const auto route = [](const RouterShape& shape) {
    return RouteCuda(shape, true, nullptr, nullptr, nullptr, nullptr);
  };
  EXPECT_EQ(route({.n_rows = 1, .n_experts = 8, .top_k = 9}), cudaErrorInvalidValue);
  EXPECT_EQ(route({.n_rows = 1, .n_experts = 1025, .top_k = 9}), cudaErrorInvalidValue);
  EXPECT_EQ(route({.n_rows = 1, .n_experts = 512, .top_k = 33}), cudaErrorInvalidValue);
  EXPECT_EQ(route({.n_rows = 0, .n_experts = 512, .top_k = 10}), cudaSuccess);
}

}  // namespace
}  // namespace hearth::worker
