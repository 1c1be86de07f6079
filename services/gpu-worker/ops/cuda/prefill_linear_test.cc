// The prefill's products against sums in double over awkward shapes.
#include "services/gpu-worker/ops/cuda/prefill_linear.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/prefill_testing.h"

namespace hearth::worker {
namespace {

using PrefillLinearTest = CudaTest;
using Floats = std::vector<float>;

constexpr WeightKind kKinds[] = {WeightKind::kTiled4, WeightKind::kTiled8, WeightKind::kBF16};
constexpr PrefillTile kTiles[] = {PrefillTile::kBest, PrefillTile::kSmall, PrefillTile::kMedium,
                                  PrefillTile::kLarge};

// x in every form.
struct DeviceRows {
  DeviceRows(int n_rows, int width, const Floats& x)
      : half(Poisoned<uint16_t>(n_rows * width)),
        high(Poisoned<uint16_t>(n_rows * width)),
        low(Poisoned<uint16_t>(n_rows * width)) {
    const auto device_x = ToDevice(x);
    if (width % 64 == 0) {
      HEARTH_EXPECT_CUDA(ToHalfRowsCuda(n_rows, width, device_x.data(), half.data(), nullptr));
    }
    HEARTH_EXPECT_CUDA(
        ToSplitRowsCuda(n_rows, width, device_x.data(), high.data(), low.data(), nullptr));
    HEARTH_EXPECT_CUDA(cudaDeviceSynchronize());
  }
  PrefillRows rows(bool is_split, int64_t first = 0) const {
    return {.half = half.data() + first,
            .high = high.data() + first,
            .low = is_split ? low.data() + first : nullptr};
  }
  DeviceBuffer<uint16_t> half, high, low;
};

// y for n_rows, with one poisoned value behind them.
Floats Compute(WeightKind kind, const DeviceMatrix& matrix, int n_rows, const PrefillRows& x,
               PrefillTile tile) {
  auto y = Poisoned<float>(n_rows * matrix.out + 1);
  HEARTH_EXPECT_CUDA(PrefillLinearCuda(kind, matrix, n_rows, x, y.data(), nullptr, tile));
  return ToHost(y);
}

// How far `got` is from the products: sums of exact products in float32, in the tensor cores'
// order.
void ExpectNear(const Floats& got, const std::vector<std::vector<Product>>& want, int n_rows,
                double tolerance) {
  ASSERT_GE(want.size(), static_cast<size_t>(n_rows));
  const size_t out = want[0].size();
  int n_off = 0;
  double worst = 0;
  for (size_t i = 0; i < static_cast<size_t>(n_rows) * out; ++i) {
    const Product& product = want[i / out][i % out];
    const double error = std::abs(got[i] - product.value);
    if (!(error <= tolerance * product.size + 1e-9)) ++n_off;
    worst = std::max(worst, error / (product.size + 1e-9));
  }
  EXPECT_EQ(n_off, 0) << "worst error " << worst << " of the terms' size";
  EXPECT_TRUE(std::isnan(got.back())) << "wrote past the end";
}

void ExpectProducts(WeightKind kind, int64_t out, int in, std::initializer_list<int> batches) {
  const HostMatrix host(kind, out, in, static_cast<uint32_t>(out * 7 + in));
  const DeviceCopy device(host);
  const RoundedMatrix rounded(host);
  const int most = std::max(batches);
  const Floats x = RandomFloats(most * in, static_cast<uint32_t>(in));
  const DeviceRows rows(most, in, x);
  for (const bool is_split : {false, true}) {
    if (is_split && kind != WeightKind::kBF16) continue;
    std::vector<std::vector<Product>> want, exact;
    for (int t = 0; t < most; ++t) {
      Floats row(x.begin() + t * in, x.begin() + (t + 1) * in);
      exact.push_back(ProductsInDouble(host.ref, row.data()));
      if (!is_split) {
        std::ranges::transform(row, row.begin(),
                               kind == WeightKind::kBF16 ? RoundedToBf16 : RoundedToHalf);
      }
      want.push_back(rounded.Times(row.data()));
    }
    for (const PrefillTile tile : kTiles) {
      for (const int n_rows : batches) {
        SCOPED_TRACE(::testing::Message()
                     << "kind " << static_cast<int>(kind) << (is_split ? " split" : "") << " ["
                     << out << ", " << in << "] x " << n_rows << ", tile "
                     << static_cast<int>(tile));
        const Floats got = Compute(kind, device.matrix, n_rows, rows.rows(is_split), tile);
        // What splitting x leaves is 2^-17 of it, the tensor cores' sums about as much.
        ExpectNear(got, want, n_rows, 1e-5);
        // Level, product and x are each rounded by at most 2^-11 (bf16: x by 2^-8); 8-bit scales of
        // a thousandth are not normal any more.
        const double rounding = is_split ? 1e-5 : kind == WeightKind::kBF16 ? 0x1p-8 : 3 * 0x1p-11;
        if (kind != WeightKind::kTiled8) ExpectNear(got, exact, n_rows, rounding);
      }
    }
  }
}

TEST_F(PrefillLinearTest, ProductsAgreeWithSumsInDouble) {
  for (const WeightKind kind : kKinds) {
    for (const int64_t out : {1, 15, 17, 64, 272}) {
      for (const int in : {64, 128, 192, 1024})
        ExpectProducts(kind, out, in, {1, 9, 31, 64, 65, 130});
    }
    ExpectProducts(kind, 512, 4096, {33});
  }
  for (const int in : {8, 72, 1000}) ExpectProducts(WeightKind::kBF16, 33, in, {1, 8, 40});
}

TEST_F(PrefillLinearTest, ARowsBitsDependNeitherOnItsBatchNorOnTheTile) {
  constexpr int kRows = 150, kOut = 272, kIn = 512;
  const DeviceRows rows(kRows, kIn, RandomFloats(kRows * kIn, 4));
  for (const WeightKind kind : kKinds) {
    const HostMatrix host(kind, kOut, kIn, 3);
    const DeviceCopy device(host);
    const Floats all = Compute(kind, device.matrix, kRows, rows.rows(true), PrefillTile::kBest);
    for (const PrefillTile tile : kTiles) {
      for (const int first : {0, 1, 77, 149}) {
        const int n_rows = std::min(kRows - first, 40);
        const Floats some =
            Compute(kind, device.matrix, n_rows, rows.rows(true, int64_t{first} * kIn), tile);
        EXPECT_TRUE(std::equal(some.begin(), some.end() - 1, all.begin() + first * kOut))
            << "kind " << static_cast<int>(kind) << ", tile " << static_cast<int>(tile) << ", rows "
            << first << " on";
      }
    }
  }
}

TEST_F(PrefillLinearTest, LevelsBeyondOneStayInRange) {
  HostMatrix host(WeightKind::kTiled4, 16, 64, 9);
  for (size_t i = 0; i < 16; ++i) host.ref.levels[i] = static_cast<float>(i) - 8;
  std::ranges::fill(host.scales,
                    F32ToF16(57344));  // its products with an eighth of the levels are exact
  host.ref.factor = 0x1p-14f;
  const DeviceCopy device(host);
  Floats x(64, 0.f);
  x[37] = 0.5f;
  const DeviceRows rows(1, 64, x);
  const Floats got =
      Compute(WeightKind::kTiled4, device.matrix, 1, rows.rows(false), PrefillTile::kBest);
  for (int64_t r = 0; r < 16; ++r) {
    Floats row(64);
    DequantizeRow(host.ref, r, row);
    EXPECT_EQ(got[static_cast<size_t>(r)], row[37] / 2) << r;
  }
}

TEST_F(PrefillLinearTest, RowsBeyondTheRangeOfHalvesBecomeTheLargest) {
  Floats x(64, 1e6f);
  x[1] = -1e6f, x[2] = std::nanf("");
  const DeviceRows rows(1, 64, x);
  const auto half = ToHost(rows.half);
  EXPECT_EQ(F16ToF32(half[0]), 65504);
  EXPECT_EQ(F16ToF32(half[16]), -65504);        // column 1: s = 1
  EXPECT_TRUE(std::isnan(F16ToF32(half[32])));  // column 2
}

TEST_F(PrefillLinearTest, SiluRowsAgreeWithTheFunction) {
  constexpr int kRows = 3, kWidth = 192;
  const Floats gate = RandomFloats(kRows * kWidth, 1, 3), up = RandomFloats(kRows * kWidth, 2);
  auto half = Poisoned<uint16_t>(kRows * kWidth);
  HEARTH_EXPECT_CUDA(SiluHalfRowsCuda(kRows, kWidth, ToDevice(gate).data(), ToDevice(up).data(),
                                      half.data(), nullptr));
  const auto got = ToHost(half);
  for (int i = 0; i < kRows * kWidth; ++i) {
    const int c = i % 64, place = 16 * (c % 4) + 2 * (c % 32 / 4) + c / 32;
    const auto at = static_cast<size_t>(i);
    const double want = gate[at] / (1 + std::exp(-double{gate[at]})) * up[at];
    EXPECT_NEAR(F16ToF32(got[at - static_cast<size_t>(c) + static_cast<size_t>(place)]), want,
                0x1p-11 * std::abs(want) + 1e-6)
        << i;
  }
}

TEST_F(PrefillLinearTest, NothingToDoIsFineAndWrongShapesAreRefused) {
  const auto run = [](WeightKind kind, const DeviceMatrix& matrix, int n_rows) {
    return PrefillLinearCuda(kind, matrix, n_rows, {}, nullptr, nullptr);
  };
  for (const WeightKind kind : kKinds) {
    EXPECT_EQ(run(kind, {.out = 16, .in = 64}, 0), cudaSuccess);
    EXPECT_EQ(run(kind, {.out = 0, .in = 64}, 1), cudaSuccess);
    EXPECT_EQ(run(kind, {.out = 16, .in = 60}, 1), cudaErrorInvalidValue);
    EXPECT_EQ(run(kind, {.out = 16, .in = 64}, 1), cudaErrorInvalidValue) << "x is missing";
  }
  EXPECT_EQ(run(WeightKind::kBlock4, {.out = 16, .in = 64}, 1), cudaErrorInvalidValue);
  EXPECT_EQ(ToHalfRowsCuda(1, 96, nullptr, nullptr, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(ToSplitRowsCuda(1, 12, nullptr, nullptr, nullptr, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
