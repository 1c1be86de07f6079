// The integer linear kernels against the same scheme in double, over awkward shapes and mixtures.
#include "services/gpu-worker/ops/cuda/decode_linear.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/matrix_testing.h"
#include "services/gpu-worker/ops/cuda/norm_cuda.h"
#include "services/gpu-worker/ops/cuda/rounded_testing.h"

namespace hearth::worker {
namespace {

using DecodeLinearTest = CudaTest;
using Floats = std::vector<float>;

constexpr DecodeKind kKinds[] = {DecodeKind::kTiled4, DecodeKind::kTiled8, DecodeKind::kBf16};

WeightKind WeightKindOf(DecodeKind kind) {
  return kind == DecodeKind::kTiled4   ? WeightKind::kTiled4
         : kind == DecodeKind::kTiled8 ? WeightKind::kTiled8
                                       : WeightKind::kBF16;
}

// A matrix on both sides, and what its product must be.
struct Matrix {
  Matrix(DecodeKind of, int64_t out, int64_t in, uint32_t seed,
         const std::array<float, 16>& levels = kNf4Levels)
      : kind(of), host(WeightKindOf(of), out, in, seed) {
    host.ref.levels = levels;
    device = std::make_unique<DeviceCopy>(host);
  }
  DecodeLinear Linear(float* y) const {
    return {.kind = kind,
            .weights = device->matrix,
            .levels = MakeDecodeLevels(host.ref.levels).value(),
            .y = y};
  }
  std::vector<Product> Want(const float* x) const {
    if (kind == DecodeKind::kBf16) return ProductsInDouble(host.ref, x);
    return ProductsInDouble(WithRoundedLevels(host.ref), RoundedToInt8(x, host.ref.in).data());
  }
  DecodeKind kind;
  HostMatrix host;
  std::unique_ptr<DeviceCopy> device;
};

// The outputs of all matrices for n_rows of x, each with one poisoned value behind them.
std::vector<Floats> Compute(const std::vector<const Matrix*>& matrices, int n_rows,
                            const float* x) {
  std::vector<DeviceBuffer<float>> outputs;
  std::vector<DecodeLinear> linears;
  for (const Matrix* matrix : matrices) {
    outputs.push_back(Poisoned<float>(n_rows * matrix->host.ref.out + 1));
    linears.push_back(matrix->Linear(outputs.back().data()));
  }
  HEARTH_EXPECT_CUDA(
      DecodeLinearsCuda(linears.data(), static_cast<int>(linears.size()), n_rows, x, nullptr));
  std::vector<Floats> got;
  for (const auto& output : outputs) got.push_back(ToHost(output));
  return got;
}

void ExpectProducts(const Matrix& matrix, const Floats& got, int n_rows, const Floats& x,
                    const std::string& what) {
  const int64_t out = matrix.host.ref.out, in = matrix.host.ref.in;
  int n_off = 0;
  double worst = 0;
  for (int t = 0; t < n_rows; ++t) {
    const auto want = matrix.Want(x.data() + t * in);
    for (int64_t r = 0; r < out; ++r) {
      const Product& product = want[static_cast<size_t>(r)];
      const double error = std::abs(got[static_cast<size_t>(t * out + r)] - product.value);
      // Whole numbers are exact; what is left are roundings of in / 64 terms of float32.
      if (!(error <= 2e-6 * product.size + 1e-9)) ++n_off, worst = std::max(worst, error);
    }
  }
  EXPECT_EQ(n_off, 0) << what << ", kind " << static_cast<int>(matrix.kind) << " [" << out << ", "
                      << in << "] x " << n_rows << ", worst error " << worst;
  EXPECT_TRUE(IsPoison(got.back())) << "wrote past the end";
}

TEST_F(DecodeLinearTest, ProductsAgreeWithTheSchemeInDouble) {
  for (const DecodeKind kind : kKinds) {
    for (const int64_t out : {1, 15, 16, 17, 33, 512}) {
      for (const int64_t in : {64, 128, 192, 320, 2048, 4096}) {
        const Matrix matrix(kind, out, in, static_cast<uint32_t>(out * 7 + in));
        const Floats x = RandomFloats(kMaxDecodeRows * in, static_cast<uint32_t>(in));
        const auto device_x = ToDevice(x);
        for (const int n : {1, 2, 3, 5, 8}) {
          ExpectProducts(matrix, Compute({&matrix}, n, device_x.data())[0], n, x, "alone");
        }
      }
    }
  }
  for (const int64_t in : {8, 72, 1000, 5000}) {
    const Matrix matrix(DecodeKind::kBf16, 33, in, 5);
    const Floats x = RandomFloats(kMaxDecodeRows * in, 6);
    ExpectProducts(matrix, Compute({&matrix}, 8, ToDevice(x).data())[0], 8, x, "odd width");
  }
}

TEST_F(DecodeLinearTest, LargeMatricesGoThroughSeveralTurns) {
  for (const DecodeKind kind : kKinds) {
    const Matrix matrix(kind, 40000, 128, 8);
    const Floats x = RandomFloats(kMaxDecodeRows * 128, 9);
    const auto device_x = ToDevice(x);
    for (const int n : {1, 8}) {
      ExpectProducts(matrix, Compute({&matrix}, n, device_x.data())[0], n, x, "large");
    }
  }
}

TEST_F(DecodeLinearTest, MatricesOfOneLaunchAndRowsOfABatchKeepTheirBits) {
  constexpr int64_t kIn = 2048;
  const Matrix first(DecodeKind::kTiled4, 1040, kIn, 1), second(DecodeKind::kBf16, 67, kIn, 2),
      third(DecodeKind::kTiled8, 333, kIn, 3), fourth(DecodeKind::kTiled4, 33, kIn, 4);
  const std::vector<const Matrix*> all = {&first, &second, &third, &fourth};
  const Floats x = RandomFloats(kMaxDecodeRows * kIn, 5);
  const auto device_x = ToDevice(x);
  for (int n = 1; n <= kMaxDecodeRows; ++n) {
    const auto together = Compute(all, n, device_x.data());
    for (size_t j = 0; j < all.size(); ++j) {
      ExpectProducts(*all[j], together[j], n, x, "together");
      const auto out = static_cast<long>(all[j]->host.ref.out);
      for (int t = 0; t < n; ++t) {
        const Floats alone = Compute({all[j]}, 1, device_x.data() + t * kIn)[0];
        EXPECT_TRUE(std::equal(alone.begin(), alone.end() - 1, together[j].begin() + t * out))
            << "matrix " << j << ", row " << t << " of " << n;
      }
    }
  }
}

// The norm in a launch of its own and in the linears': all that either leaves.
struct NormedResult {
  Floats x, h, scales;
  std::vector<uint32_t> words;
  std::vector<Floats> y;
  bool operator==(const NormedResult&) const = default;
};

NormedResult Normed(const std::vector<const Matrix*>& matrices, int n_rows, bool with_delta,
                    bool at_once) {
  const int64_t in = matrices[0]->host.ref.in;
  auto x = ToDevice(RandomFloats(n_rows * in, 21));
  const auto delta = ToDevice(RandomFloats(n_rows * in, 22)),
             weight = ToDevice(RandomFloats(in, 23));
  auto sum = Poisoned<float>(n_rows * in), h = Poisoned<float>(n_rows * in);
  RoundedBuffer rounded(n_rows, static_cast<int>(in));
  std::vector<DeviceBuffer<float>> outputs;
  std::vector<DecodeLinear> linears;
  for (const Matrix* matrix : matrices) {
    outputs.push_back(Poisoned<float>(n_rows * matrix->host.ref.out + 1));
    linears.push_back(matrix->Linear(outputs.back().data()));
  }
  const auto n_linears = static_cast<int>(linears.size());
  const float* add = with_delta ? delta.data() : nullptr;
  if (at_once) {
    HEARTH_EXPECT_CUDA(NormedDecodeLinearsCuda(linears.data(), n_linears, n_rows,
                                               {.x = x.data(),
                                                .delta = add,
                                                .weight = weight.data(),
                                                .eps = 1e-6f,
                                                .sum = sum.data(),
                                                .h = h.data(),
                                                .rounded = rounded.rows()},
                                               nullptr));
  } else {
    HEARTH_EXPECT_CUDA(AddRmsNormCuda(n_rows, static_cast<int>(in), x.data(), {.delta = add},
                                      weight.data(), 1e-6f, h.data(), rounded.rows(), nullptr));
    HEARTH_EXPECT_CUDA(
        DecodeLinearsCuda(linears.data(), n_linears, n_rows, h.data(), rounded.rows(), nullptr));
  }
  NormedResult result{.x = ToHost(at_once && with_delta ? sum : x),
                      .h = ToHost(h),
                      .scales = ToHost(rounded.scales),
                      .words = ToHost(rounded.words),
                      .y = {}};
  for (const auto& output : outputs) {
    result.y.push_back(ToHost(output));
    EXPECT_TRUE(IsPoison(result.y.back().back())) << "wrote past the end";
    result.y.back().pop_back();
    for (const float value : result.y.back()) EXPECT_FALSE(IsPoison(value));
  }
  return result;
}

TEST_F(DecodeLinearTest, ANormInTheSameLaunchLeavesTheBitsOfTwoLaunches) {
  for (const int64_t in : {64, 320, 2048}) {
    const Matrix first(DecodeKind::kTiled4, 1040, in, 1), second(DecodeKind::kBf16, 67, in, 2),
        third(DecodeKind::kTiled8, 333, in, 3), one(DecodeKind::kBf16, 1, in, 4);
    const std::vector<std::vector<const Matrix*>> launches = {
        {&first, &second, &third, &one}, {&first}, {&second, &one}, {&third}};
    for (const auto& matrices : launches) {
      for (int n = 1; n <= kMaxNormedRows; ++n) {
        for (const bool with_delta : {false, true}) {
          EXPECT_TRUE(Normed(matrices, n, with_delta, true) ==
                      Normed(matrices, n, with_delta, false))
              << in << " columns, " << n << " rows, first kind "
              << static_cast<int>(matrices[0]->kind);
        }
      }
    }
  }
}

TEST_F(DecodeLinearTest, BothSignsOfLevelsAndWholeBlocksOfZeroAreRight) {
  for (const auto& levels : {kNf4Levels, kFp4Levels}) {
    const Matrix matrix(DecodeKind::kTiled4, 48, 192, 7, levels);
    Floats x = RandomFloats(192, 8);
    std::fill(x.begin() + 64, x.begin() + 128, 0.f);
    x[130] = 1e-30f;
    ExpectProducts(matrix, Compute({&matrix}, 1, ToDevice(x).data())[0], 1, x, "levels");
  }
}

TEST(DecodeLevels, AreThoseOfTheCpuAndNothingWhereAHalfHasBothSigns) {
  for (const auto& levels : {kNf4Levels, kFp4Levels}) {
    const auto made = MakeDecodeLevels(levels);
    ASSERT_TRUE(made.has_value());
    const IntegerLevels want = RoundLevels(levels);
    const auto byte = [](const uint32_t(&half)[2], int code) {
      return static_cast<int>(half[code / 4] >> (code % 4 * 8) & 0xff);
    };
    for (int code = 0; code < 16; ++code) {
      const int value = code < 8 ? -byte(made->low, code) : byte(made->high, code - 8);
      EXPECT_EQ(made->scale < 0 ? -value : value, want.integers[static_cast<size_t>(code)]) << code;
    }
    EXPECT_EQ(std::abs(made->scale), want.scale);
  }
  std::array<float, 16> mixed = kNf4Levels;
  mixed[1] = 0.5f;
  EXPECT_FALSE(MakeDecodeLevels(mixed).has_value());
  for (float& level : mixed) level = std::abs(level);
  EXPECT_FALSE(MakeDecodeLevels(mixed).has_value());
}

TEST_F(DecodeLinearTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  const auto run = [](DecodeKind kind, int64_t out, int64_t in, int n_linears, int n_rows) {
    const DecodeLinear one = {.kind = kind, .weights = {.out = out, .in = in}};
    const std::vector<DecodeLinear> linears(5, one);
    return DecodeLinearsCuda(linears.data(), n_linears, n_rows, nullptr, nullptr);
  };
  EXPECT_EQ(run(DecodeKind::kTiled4, 16, 64, 1, 0), cudaSuccess);
  EXPECT_EQ(run(DecodeKind::kTiled4, 16, 64, 0, 1), cudaErrorInvalidValue);
  EXPECT_EQ(run(DecodeKind::kTiled4, 16, 64, 5, 1), cudaErrorInvalidValue);
  EXPECT_EQ(run(DecodeKind::kTiled4, 16, 64, 1, 9), cudaErrorInvalidValue);
  EXPECT_EQ(run(DecodeKind::kTiled4, 0, 64, 1, 1), cudaErrorInvalidValue);
  EXPECT_EQ(run(DecodeKind::kTiled8, 16, 72, 1, 1), cudaErrorInvalidValue);
  EXPECT_EQ(run(DecodeKind::kBf16, 16, 12, 1, 1), cudaErrorInvalidValue);
  EXPECT_EQ(run(DecodeKind::kTiled4, 16, 64000, 1, 1), cudaErrorInvalidValue);
  const auto normed = [](int64_t in, int n_rows, const NormBefore& norm) {
    const DecodeLinear one = {.weights = {.out = 16, .in = in}};
    return NormedDecodeLinearsCuda(&one, 1, n_rows, norm, nullptr);
  };
  float x = 0;
  EXPECT_EQ(normed(64, 0, {.x = &x}), cudaSuccess);
  EXPECT_EQ(normed(64, kMaxNormedRows + 1, {.x = &x}), cudaErrorInvalidValue);
  EXPECT_EQ(normed(kMaxNormedWidth + 64, 1, {.x = &x}), cudaErrorInvalidValue);
  EXPECT_EQ(normed(64, 1, {.x = &x, .delta = &x, .sum = &x}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
